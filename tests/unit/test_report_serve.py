"""`--serve`: the page for a browser on this machine, and for nobody else."""

from __future__ import annotations

import html
import http.client
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_folders import append, evaluated, whole_run

from mosaickd.analysis.serve import Pages, Server
from mosaickd.report import main


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    whole_run(tmp_path / "runs" / "one", steps=(10,))
    server = Server(0, Pages([tmp_path / "runs"]))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def ask(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[int, str, str]:
    """Return an answer's status, text and ETag."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text, answer.headers.get("ETag", "")


def test_the_page_is_built_anew_when_a_file_has_changed(server: Server, tmp_path: Path) -> None:
    status, text, version = ask(server, "/")
    assert status == 200
    assert f"data-version={version}" in text
    assert "connect-src 'self'" in html.unescape(text)
    assert ask(server, "/", "HEAD") == (200, "", version)
    append(tmp_path / "runs" / "one", evaluated(20, 33.0))
    newer = ask(server, "/", "HEAD")[2]
    assert newer != version
    _, text, version = ask(server, "/")
    assert version == newer
    assert "at step 20" in text
    whole_run(tmp_path / "runs" / "two", seed=1)
    assert "Each run" in ask(server, "/")[1]


def test_a_folder_without_runs_waits_for_them(server: Server, tmp_path: Path) -> None:
    (tmp_path / "runs" / "one").rename(tmp_path / "elsewhere")
    status, text, _ = ask(server, "/")
    assert status == 200
    assert "There is no run here yet" in text
    (tmp_path / "runs").rmdir()
    status, text, _ = ask(server, "/")
    assert status == 503
    assert "there is no such folder" in text


def test_nothing_else_is_served_and_nobody_else(server: Server) -> None:
    """A page of evil.example that has its name lead to 127.0.0.1 would read the report."""
    assert server.socket.getsockname()[0] == "127.0.0.1"
    for path in ("/../../etc/passwd", "/one/result.json", "/?x"):
        assert ask(server, path)[0] == 404
    for name in ("evil.example", "evil.example:80", "127.0.0.1", "localhost:1"):
        assert ask(server, "/", Host=name)[0] == 403
    assert ask(server, "/", "HEAD", Host=f"localhost:{server.port}")[0] == 200


@pytest.mark.parametrize("port", ["-1", "65536", "x", "80.5"])
def test_what_is_no_port_is_refused(tmp_path: Path, port: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path), f"--serve={port}"])
    assert stop.value.code == 2


def test_a_port_in_use_is_an_error_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole_run(tmp_path / "run")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SystemExit, match="1"):
            main([str(tmp_path), "--serve", str(port)])
    assert f"error: port {port} is in use" in capsys.readouterr().err


def test_the_command_ends_with_control_c(tmp_path: Path) -> None:
    whole_run(tmp_path / "run")
    process = subprocess.Popen(
        [sys.executable, "-m", "mosaickd.report", str(tmp_path), "--serve", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    first = process.stdout.readline()
    assert re.match(r"http://127\.0\.0\.1:\d+/ shows ", first)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert err == ""
