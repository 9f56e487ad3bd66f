"""`--serve`: the page for a browser on this machine, and for nobody else."""

from __future__ import annotations

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

from mosaickd.report.__main__ import main
from mosaickd.report.page import serve as module
from mosaickd.report.page.serve import Pages, Server


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "FRESH", 0.0)
    whole_run(tmp_path / "runs" / "one", steps=(10,))
    server = Server(0, Pages([tmp_path / "runs"], "last", False))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def ask(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[int, str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text, str(answer.headers)


def test_it_serves_the_page_and_which_version_it_is(server: Server) -> None:
    status, text, headers = ask(server, "/")
    assert status == 200
    assert "connect-src 'self'" in headers
    _, version, _ = ask(server, "/version")
    assert re.search(r'data-version="(\w+)"', text)[1] == version  # type: ignore[index]
    assert ask(server, "/")[1] == text
    assert ask(server, "/", "HEAD")[:2] == (200, "")
    for path in ("/../../etc/passwd", "/one/result.json", "/?x"):
        assert ask(server, path)[0] == 404
    assert ask(server, "/", "POST")[0] == 501


def test_it_is_built_anew_when_a_file_has_changed(server: Server, tmp_path: Path) -> None:
    _, before, _ = ask(server, "/version")
    append(tmp_path / "runs" / "one", evaluated(20, 33.0))
    _, after, _ = ask(server, "/version")
    assert after != before
    assert "at step 20" in ask(server, "/")[1]
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


@pytest.mark.parametrize(
    "name", ["evil.example", "evil.example:80", "127.0.0.1", "", "localhost:1"]
)
def test_names_of_others_get_nothing(server: Server, name: str) -> None:
    """A page of evil.example that has its name lead to 127.0.0.1 would read the report."""
    for path in ("/", "/version"):
        status, text, _ = ask(server, path, Host=name)
        assert status == 403
        assert "<html" not in text
    assert ask(server, "/", Host=f"localhost:{server.port}")[0] == 200


def test_it_listens_on_this_machine_only(server: Server) -> None:
    assert server.socket.getsockname()[0] == "127.0.0.1"


def test_a_port_in_use_is_told_in_a_line(tmp_path: Path) -> None:
    whole_run(tmp_path / "run")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SystemExit, match=f"error: port {port} is in use"):
            main([str(tmp_path), "--serve", str(port)])


@pytest.mark.parametrize("port", ["-1", "65536", "x", "80.5", "٣"])
def test_what_is_no_port_is_refused(
    tmp_path: Path, port: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path), f"--serve={port}"])
    assert stop.value.code == 2
    assert "a port is a number from 0 to 65535" in capsys.readouterr().err


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
