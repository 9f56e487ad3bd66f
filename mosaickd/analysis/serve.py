"""The page on 127.0.0.1, built anew when something in the run folders has changed."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

from mosaickd.analysis.page import Contexts, render_page
from mosaickd.analysis.runs import Run, load_runs, signature
from mosaickd.analysis.table import build_report
from mosaickd.errors import UserError

ADDRESS = "127.0.0.1"


class Pages:
    """The newest page of some folders."""

    def __init__(
        self, folders: Sequence[Path], evaluation: str = "last", everything: bool = False
    ) -> None:
        self.folders, self.evaluation, self.everything = folders, evaluation, everything
        self.lock = Lock()
        self.version, self.html = "", b""
        self.contexts: Contexts = {}

    def newest_version(self) -> str:
        """Return what differs as soon as a file that the page shows does."""
        return _version(load_runs(self.folders))

    def newest(self) -> tuple[str, bytes]:
        """Return the version and the page itself."""
        with self.lock:
            runs = load_runs(self.folders)
            version = _version(runs)
            if version != self.version:
                report = build_report(runs, self.evaluation, self.everything)
                self.html = render_page(report, self.folders, version, self.contexts).encode()
                self.version = version
            return self.version, self.html


def _version(runs: Sequence[Run]) -> str:
    return hashlib.sha256(repr([signature(run) for run in runs]).encode()).hexdigest()[:16]


class Handler(BaseHTTPRequestHandler):
    """Answers at / with the page; to HEAD, which asks for its version only, it builds nothing."""

    server: Server

    def do_GET(self) -> None:
        # A site elsewhere whose name leads to this machine must not read the page.
        if self.headers.get("Host") not in self.server.names:
            self.send_error(403)
        elif self.path != "/":
            self.send_error(404)
        else:
            try:
                self._send_page()
            except UserError as error:  # the folder was removed
                self.send_error(503, explain=str(error))

    do_HEAD = do_GET

    def _send_page(self) -> None:
        if self.command == "HEAD":
            version, html = self.server.pages.newest_version(), b""
        else:
            version, html = self.server.pages.newest()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Cache-Control", "no-store")
        self.send_header("ETag", f'"{version}"')
        self.end_headers()
        self.wfile.write(html)

    def log_message(self, *_: object) -> None:
        """Print nothing: a question comes every two seconds."""


class Server(ThreadingHTTPServer):
    """Listens on this machine only. port: 0 for any."""

    daemon_threads = True

    def __init__(self, port: int, pages: Pages) -> None:
        super().__init__((ADDRESS, port), Handler)
        self.pages = pages
        self.port = self.server_address[1]
        self.names = {f"{name}:{self.port}" for name in (ADDRESS, "localhost")}


def serve(
    folders: Sequence[Path], port: int, evaluation: str = "last", everything: bool = False
) -> None:
    """Serve the page until Ctrl-C. Raises UserError where the port can't be had."""
    pages = Pages(folders, evaluation, everything)
    pages.newest_version()  # a folder that isn't there is an error now, not in the browser
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
