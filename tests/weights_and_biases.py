"""What tests need of Weights & Biases: its files read, its processes found, and a server that can
fail in every way that servers do."""

from __future__ import annotations

import gzip
import json
import os
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEY = "0123456789" * 4  # has an API key's length


def stored(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file: a header, then LevelDB's log format, in blocks of 32 KiB."""
    content = path.read_bytes()
    assert content[:4] == b":W&B"
    position, record = 7, b""
    while position + 7 <= len(content):
        if (left := 32768 - position % 32768) < 7:  # too short for a chunk's header: padding
            position += left
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)  # after the checksum
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def read_run(path: Path) -> dict[str, Any]:
    """What a run's file holds: its identity, config, history and summary."""
    from wandb.proto.wandb_internal_pb2 import Record

    found: dict[str, Any] = {"config": {}, "history": [], "summary": {}, "artifacts": []}
    for data in stored(path):
        record = Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            found |= {"id": run.run_id, "group": run.run_group, "tags": list(run.tags)}
            found["job_type"] = run.job_type
            found |= {"project": run.project, "name": run.display_name}
            found["config"] |= values(run.config.update)
        elif kind == "history":
            found["history"].append(values(record.history.item))
        elif kind == "request" and record.request.HasField("log_artifact"):
            artifact = record.request.log_artifact.artifact
            found["artifacts"] += [
                (artifact.type, entry.path) for entry in artifact.manifest.contents
            ]
        elif kind == "artifact":
            found["artifacts"] += [
                (record.artifact.type, entry.path) for entry in record.artifact.manifest.contents
            ]
        elif kind == "summary":
            found["summary"] |= values(record.summary.update)
    return found


def values(items: Iterable[Any]) -> dict[str, Any]:
    return {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}


def offline_runs(folder: Path) -> list[dict[str, Any]]:
    return [read_run(path) for path in sorted(folder.rglob("offline-run-*/run-*.wandb"))]


# ------------------------------------------------------------------------------ processes


def descendants(of: int | None = None) -> dict[int, str]:
    """Living processes below `of` (this one), with their command lines. Linux only."""
    parents, commands = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(folder.name)] = int(parent)
                commands[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
    found: set[int] = set()
    ahead = [of or os.getpid()]
    while ahead:
        parent = ahead.pop()
        ahead += (children := [pid for pid, its in parents.items() if its == parent])
        found.update(children)
    return {pid: commands[pid] for pid in found}


def service(of: int | None = None) -> int:
    """The process id of wandb-core below `of`."""
    (pid,) = (pid for pid, command in descendants(of).items() if "/wandb-core " in command)
    return pid


def wait_for(happened: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


# ------------------------------------------------------------------------------ the server

PROJECT = {"id": "1", "name": "mosaickd", "entity": {"id": "1", "name": "me"}}


def graphql(body: bytes, url: str) -> bytes:
    """The answer to a query: W&B gives a run the id that it asks for, and takes any file."""
    asked = json.loads(body or b"{}").get("variables") or {}
    bucket = {"id": "1", "name": asked.get("name"), "displayName": "a run", "project": PROJECT}
    files = [{"name": name, "uploadUrl": f"{url}/{name}"} for name in asked.get("files") or []]
    data = {
        "upsertBucket": {"bucket": bucket, "inserted": True},
        "createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files},
    }
    return json.dumps({"data": data}).encode()


class Server:
    """Answers as W&B's server does, as far as a run needs it, until `fault` says otherwise.

    fault: "silent", "cut" (in the middle of an answer), "garbage", "null" (an answer without
        contents), "refused" (no connections), an HTTP status, or None.
    delay: seconds before each answer.
    """

    def __init__(self, fault: str | int | None = None, delay: float = 0.0) -> None:
        self.fault, self.delay = fault, delay
        self.requests = 0
        self.history: list[dict[str, Any]] = []  # rows that have arrived
        self.closing = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.requests += 1
                outer.closing.wait(outer.delay)
                if outer.fault == "silent":
                    outer.closing.wait()
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                if outer.fault is None and self.path.endswith("/file_stream"):
                    outer.take(json.loads(body).get("files") or {})
                with suppress(OSError):
                    outer.answer(self, graphql(body, outer.url) if self.path == "/graphql" else b"")

            do_GET = do_PUT = do_POST

            def log_message(self, *_: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def take(self, files: dict[str, Any]) -> None:
        self.history += map(json.loads, files.get("wandb-history.jsonl", {}).get("content", []))

    def answer(self, handler: BaseHTTPRequestHandler, content: bytes) -> None:
        if self.fault in ("cut", "refused"):
            handler.close_connection = True
            if self.fault == "cut":
                handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Le")
            return
        if self.fault == "garbage":
            content = b"<html>a captive portal</html>"
        if self.fault == "null":
            content = b'{"data": {}}'
        handler.send_response(self.fault if isinstance(self.fault, int) else 200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def close(self) -> None:
        """From now on connections are refused."""
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()


def refusing() -> str:
    """The address of a server that is not there."""
    server = Server()
    server.close()
    return server.url
