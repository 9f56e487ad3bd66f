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
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import NOWHERE

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


@contextmanager
def nobody_at(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No account, no network, no home; and nothing is left running."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, NOWHERE)
    monkeypatch.setenv("HOME", str(home))
    yield
    wait_for(lambda: not [c for c in descendants().values() if "wandb" in c])


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


class Kept:
    """A run as W&B's server has it: rows by their place in the file, each as it was sent last."""

    def __init__(self) -> None:
        self.about: dict[str, Any] = {}  # groupName, jobType, tags, ... as last said
        self.rows: dict[int, dict[str, Any]] = {}
        self.summary: dict[str, Any] = {}

    @property
    def history(self) -> list[dict[str, Any]]:
        return [row for _, row in sorted(self.rows.items())]

    def take(self, files: dict[str, Any]) -> None:
        chunk = files.get("wandb-history.jsonl", {"offset": 0, "content": []})
        for place, line in enumerate(chunk["content"], chunk["offset"]):
            self.rows[place] = json.loads(line)
        for line in files.get("wandb-summary.json", {"content": []})["content"]:
            self.summary = json.loads(line)

    def resume_status(self) -> dict[str, Any]:
        """What a client asks before it goes on with a run."""
        tail = [json.dumps(row) for row in self.history[-1:]]
        return {
            **{
                "id": "1",
                "name": "1",
                "displayName": "a run",
                "tags": self.about.get("tags") or [],
            },
            **{"summaryMetrics": json.dumps(self.summary), "config": self.about["config"]},
            **{"historyLineCount": len(self.rows), "logLineCount": 0, "eventsLineCount": 0},
            **{"historyTail": json.dumps(tail), "eventsTail": "[]", "notes": None},
            "wandbConfig": json.dumps({"t": {}}),
        }


class Server:
    """Answers as W&B's server does, as far as a run needs it, until `fault` says otherwise.

    `runs` has what it was sent. Artifacts are taken with all their files.

    fault: "silent", "cut" (in the middle of an answer), "garbage", "null" (an answer without
        contents), "refused" (no connections), an HTTP status, or None.
    delay: seconds before each answer.
    """

    def __init__(self, fault: str | int | None = None, delay: float = 0.0) -> None:
        self.fault, self.delay = fault, delay
        self.requests = 0
        self.runs: dict[str, Kept] = {}
        self.views: list[dict[str, Any]] = []  # of dashboards
        self.artifacts: list[dict[str, Any]] = []  # what was asked for, and then "files"
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
                    name = self.path.split("/")[-2]
                    outer.runs[name].take(json.loads(body).get("files") or {})
                if self.command == "PUT" and self.path.startswith("/artifact/"):
                    number, name = self.path.split("/", 3)[2:]
                    outer.artifacts[int(number)]["files"][name] = body
                with suppress(OSError):
                    outer.answer(self, outer.graphql(body) if self.path == "/graphql" else b"")

            do_GET = do_PUT = do_POST

            def log_message(self, *_: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    @property
    def history(self) -> list[dict[str, Any]]:
        """Rows of the only run."""
        (run,) = self.runs.values()
        return run.history

    def graphql(self, body: bytes) -> bytes:
        """The answer to a query: W&B gives a run the id that it asks for, and takes any file."""
        query = json.loads(body or b"{}")
        asked = query.get("variables") or {}
        name = asked.get("name")
        if "UpsertBucket" in query.get("query", ""):
            run = self.runs.setdefault(name, Kept())
            run.about |= {key: value for key, value in asked.items() if value is not None}
        if "UpsertView" in query.get("query", ""):
            self.views.append(asked)
        project = {**PROJECT, "name": asked.get("project") or PROJECT["name"]}
        bucket = {"id": "1", "name": name, "displayName": "a run", "project": project}
        files = [{"name": f, "uploadUrl": f"{self.url}/{f}"} for f in asked.get("files") or []]
        kept = self.runs.get(name)
        return json.dumps({"data": {
            "upsertBucket": {"bucket": bucket, "inserted": True},
            "createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files},
            "serverInfo": {"features": []},
            "project": None,
            "upsertView": {"view": {"id": "1", "name": name}, "inserted": True},
            "viewer": {"id": "1", "username": "me", "entity": "me", "flags": "{}"},
            "model": {**PROJECT, "bucket": kept.resume_status() if kept else None},
            **self.artifact(query.get("query", ""), asked),
        }}).encode()  # fmt: skip

    def artifact(self, query: str, asked: dict[str, Any]) -> dict[str, Any]:
        """Answers to what a client asks while it sends an artifact."""
        if "mutation CreateArtifact " in query:
            self.artifacts.append({**asked["input"], "files": {}})
            sequence = {"id": "1", "latestArtifact": None}
            number = str(len(self.artifacts) - 1)
            new = {"id": number, "state": "PENDING", "artifactSequence": sequence}
            return {"createArtifact": {"artifact": new}}
        number = asked.get("artifactID") or asked.get("artifactManifestID") or "0"
        url = f"{self.url}/artifact/{number}"
        manifest = {"id": number, "file": {"id": "1", "uploadUrl": f"{url}/manifest",
                                           "uploadHeaders": []}}  # fmt: skip
        nodes = [
            {"node": {"storagePath": file["name"], "uploadHeaders": [],
                      "uploadUrl": f"{self.url}/artifact/{file['artifactID']}/{file['name']}",
                      "uploadMultipartUrls": None, "artifact": {"id": file["artifactID"]}}}
            for file in (asked.get("input") or {}).get("artifactFiles") or []
        ]  # fmt: skip
        return {
            "createArtifactManifest": {"artifactManifest": manifest},
            "updateArtifactManifest": {"artifactManifest": manifest},
            "createArtifactFiles": {"files": {"edges": nodes}},
            "commitArtifact": {"artifact": {"id": number, "digest": "1"}},
            "clientIDMapping": {"serverID": number},
        }

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
