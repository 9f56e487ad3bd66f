"""What tests need of Weights & Biases: its files read, and a server that can fail."""

from __future__ import annotations

import gzip
import json
import os
import struct
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import NOWHERE

KEY = "0123456789" * 4  # has an API key's length


def forget_account(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No account, no network, no home."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, NOWHERE)
    monkeypatch.setenv("HOME", str(home))


def account(url: str) -> dict[str, str]:
    return {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY, "no_proxy": "127.0.0.1"}


# ------------------------------------------------------------------------------ files


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
    """What a run's file holds: its identity, config, history, summary and artifacts."""
    from wandb.proto.wandb_internal_pb2 import Record

    content: dict[str, Any] = {"config": {}, "history": [], "summary": {}, "artifacts": []}
    for data in stored(path):
        record = Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            content |= {"id": run.run_id, "group": run.run_group, "tags": list(run.tags)}
            content |= {"job_type": run.job_type, "project": run.project, "sweep": run.sweep_id}
            content["config"] |= values(run.config.update)
        elif kind == "config":
            content["config"] |= values(record.config.update)
        elif kind == "history":
            content["history"].append(values(record.history.item))
        elif kind == "request" and record.request.HasField("log_artifact"):
            artifact = record.request.log_artifact.artifact
            content["artifacts"] += [(artifact.type, e.path) for e in artifact.manifest.contents]
        elif kind == "artifact":
            artifact = record.artifact
            content["artifacts"] += [(artifact.type, e.path) for e in artifact.manifest.contents]
        elif kind == "summary":
            content["summary"] |= values(record.summary.update)
    return content


def values(items: Iterable[Any]) -> dict[str, Any]:
    return {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}


def offline_runs(folder: Path) -> list[dict[str, Any]]:
    return [read_run(path) for path in sorted(folder.rglob("offline-run-*/run-*.wandb"))]


# ------------------------------------------------------------------------------ the server

PROJECT = {"id": "1", "name": "mosaickd", "entity": {"id": "1", "name": "me"}}


class StoredRun:
    """A run as W&B's server has it: rows by their place in the file, each as it was sent last."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}  # groupName, jobType, tags, ...
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
        """What a client asks before it continues a run."""
        tail = [json.dumps(row) for row in self.history[-1:]]
        return {
            **{"id": "1", "name": "1", "displayName": "a run", "notes": None},
            **{"tags": self.settings.get("tags") or [], "config": self.settings["config"]},
            **{"summaryMetrics": json.dumps(self.summary), "wandbConfig": '{"t": {}}'},
            **{"historyLineCount": len(self.rows), "logLineCount": 0, "eventsLineCount": 0},
            **{"historyTail": json.dumps(tail), "eventsTail": "[]"},
        }


class Server:
    """Answer as W&B's server does, as far as a run needs it, until `fault` says otherwise.

    fault: "silent", an HTTP status, or None. `runs` has what it was sent.
    """

    def __init__(self, fault: str | int | None = None) -> None:
        self.fault = fault
        self.requests = 0
        self.runs: dict[str, StoredRun] = {}
        self.views: list[dict[str, Any]] = []  # of dashboards
        self.closing = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.requests += 1
                if outer.fault == "silent":
                    outer.closing.wait()
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                if outer.fault is None and self.path.endswith("/file_stream"):
                    name = self.path.split("/")[-2]
                    outer.runs[name].take(json.loads(body).get("files") or {})
                with suppress(OSError):
                    outer.answer(self, outer.graphql(body) if self.path == "/graphql" else b"")

            do_GET = do_PUT = do_POST

            def log_message(self, *_: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def graphql(self, body: bytes) -> bytes:
        """The answer to a query: W&B gives a run the id that it asks for, and takes any file."""
        query = json.loads(body or b"{}")
        asked = query.get("variables") or {}
        name = asked.get("name")
        if "UpsertBucket" in query.get("query", ""):
            run = self.runs.setdefault(name, StoredRun())
            run.settings |= {key: value for key, value in asked.items() if value is not None}
        if "UpsertView" in query.get("query", ""):
            self.views.append(asked)
        project = {**PROJECT, "name": asked.get("project") or PROJECT["name"]}
        bucket = {"id": "1", "name": name, "displayName": "a run", "project": project}
        files = [{"name": f, "uploadUrl": f"{self.url}/{f}"} for f in asked.get("files") or []]
        known = self.runs.get(name)
        return json.dumps({"data": {
            "upsertBucket": {"bucket": bucket, "inserted": True},
            "createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files},
            "serverInfo": {"features": []},
            "project": None,
            "upsertView": {"view": {"id": "1", "name": name}, "inserted": True},
            "viewer": {"id": "1", "username": "me", "entity": "me", "flags": "{}"},
            "model": {**PROJECT, "bucket": known.resume_status() if known else None},
            **self.artifact(asked),
        }}).encode()  # fmt: skip

    def artifact(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Answers to what a client asks while it sends an artifact: a table, a checkpoint."""
        url = f"{self.url}/artifact"
        new = {"id": "1", "state": "PENDING",
               "artifactSequence": {"id": "1", "latestArtifact": None}}  # fmt: skip
        manifest = {"id": "1", "file": {"id": "1", "uploadUrl": url, "uploadHeaders": []}}
        nodes = [
            {"node": {"storagePath": file["name"], "uploadHeaders": [], "uploadUrl": url,
                      "uploadMultipartUrls": None, "artifact": {"id": "1"}}}
            for file in (asked.get("input") or {}).get("artifactFiles") or []
        ]  # fmt: skip
        return {
            "createArtifact": {"artifact": new},
            "createArtifactManifest": {"artifactManifest": manifest},
            "updateArtifactManifest": {"artifactManifest": manifest},
            "createArtifactFiles": {"files": {"edges": nodes}},
            "commitArtifact": {"artifact": {"id": "1", "digest": "1"}},
            "clientIDMapping": {"serverID": "1"},
        }

    def answer(self, handler: BaseHTTPRequestHandler, content: bytes) -> None:
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
