"""A page that stays up to date while runs go on, for this machine's own browser only."""

from __future__ import annotations

import errno
import hashlib
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from mosaickd.errors import UserError
from mosaickd.report.page.document import Drawn, page, policy
from mosaickd.report.results import collect
from mosaickd.report.run_files import entries, signatures
from mosaickd.report.table import build

ADDRESS = "127.0.0.1"
#: Seconds for which what was seen in the folders is believed.
FRESH = 0.5


class Pages:
    """The newest page of some folders: built when someone asks and a file has changed."""

    def __init__(self, folders: Sequence[Path], evaluation: str, everything: bool) -> None:
        self.folders, self.evaluation, self.everything = folders, evaluation, everything
        self.lock = threading.Lock()
        self.drawn: Drawn = {}
        self.looked = -FRESH
        self.version = ""
        self.built = ""  # the version of `text`
        self.text = b""

    def newest_version(self) -> str:
        with self.lock:
            return self._look()

    def newest(self) -> bytes:
        with self.lock:
            version = self._look()
            if version != self.built:
                found = collect(self.folders)
                report = build(found, evaluation=self.evaluation, everything=self.everything)
                runs = entries(found, self.folders)
                text = page(report, runs, self.folders, version=version, drawn=self.drawn)
                self.text, self.built = text.encode(), version
            return self.text

    def _look(self) -> str:
        """What differs as soon as a file does."""
        now = time.monotonic()
        if now - self.looked >= FRESH:
            found = collect(self.folders)
            seen = signatures(entries(found, self.folders))
            self.version = hashlib.sha256(repr(seen).encode()).hexdigest()[:16]
            self.looked = time.monotonic()
        return self.version


class Handler(BaseHTTPRequestHandler):
    """Two addresses to read: the page, and which version of it is the newest."""

    server: Server
    server_version, sys_version = "mosaickd", ""
    timeout = 30  # of a connection that says nothing

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_GET

    def _answer(self) -> None:
        if self.headers.get("Host") not in self.server.names:
            # A page from elsewhere may have had its own name lead here: it must not read this one.
            self._send(403, b"this server answers to its own address only\n", "text/plain")
            return
        try:
            match self.path:
                case "/":
                    self._send(200, self.server.pages.newest(), "text/html")
                case "/version":
                    self._send(200, self.server.pages.newest_version().encode(), "text/plain")
                case "/favicon.ico":
                    self._send(204, b"", "image/x-icon")
                case _:
                    self._send(404, b"nothing is here but /\n", "text/plain")
        except (UserError, OSError) as error:  # the folder was removed
            if isinstance(error, ConnectionError):
                raise
            self._send(503, f"{error}\n".encode(), "text/plain")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": f"{policy(live=True)}; frame-ancestors 'none'",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet: a question comes every second."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int, pages: Pages) -> None:
        super().__init__((ADDRESS, port), Handler)
        self.pages = pages
        self.port = self.server_address[1]
        self.names = {f"{name}:{self.port}" for name in (ADDRESS, "localhost")}

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that went away in the middle is none; anything else is shown."""
        import sys

        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def serve(folders: Sequence[Path], port: int, *, evaluation: str, everything: bool) -> None:
    """Until Ctrl-C. Raises UserError where the port can't be had or a folder isn't there."""
    pages = Pages(folders, evaluation, everything)
    pages.newest_version()
    try:
        server = Server(port, pages)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} is in use: choose another one, or 0 for any") from error
        raise UserError(f"can't serve on port {port}: {error.strerror or error}") from error
    try:
        print(f"http://{ADDRESS}:{server.port}/ shows {', '.join(map(str, folders))}; Ctrl-C ends",
              flush=True)  # fmt: skip
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()
