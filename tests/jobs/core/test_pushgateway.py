"""What a command leaves behind, at a server that only keeps what it is sent."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from jobs.core.pushgateway import leave_facts

Requests = list[tuple[str, str, str]]


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[Requests]:
    """Method, path and body of every request; HIERA_PUSHGATEWAY names the server."""
    requests: Requests = []

    class Keeper(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            requests.append((self.command, self.path, body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Keeper)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HIERA_PUSHGATEWAY", f"http://127.0.0.1:{server.server_port}")
    yield requests
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("code", "success"), [(0, True), (1, False), (3, False)])
def test_how_a_program_ended_is_left(gateway: Requests, code: int, success: bool) -> None:
    """Added, not replaced: the time of the last success stays when a later run fails."""
    assert leave_facts("tag", code) == ""
    ((method, path, body),) = gateway
    assert (method, path) == ("POST", "/metrics/job/hiera/program/tag")
    assert f"hiera_last_exit_code {float(code)}" in body
    assert "hiera_last_end_timestamp_seconds 1." in body
    assert ("hiera_last_success_timestamp_seconds 1." in body) == success


def test_a_command_leaves_its_facts_and_a_look_leaves_none(gateway: Requests) -> None:
    command = [sys.executable, "-m", "jobs.inspect", "data=/missing"]
    assert subprocess.run([*command, "--print-config"], capture_output=True, check=False).returncode == 0
    assert gateway == []
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2
    ((_, path, body),) = gateway
    assert path.endswith("/program/inspect")
    assert "hiera_last_exit_code 2.0" in body


def test_what_is_no_gateway_changes_nothing_but_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a server of another protocol under a mistaken port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(2**16)
                connection.sendall(b"220 mail.example.org ESMTP\r\n")

        threading.Thread(target=answer, daemon=True).start()
        monkeypatch.setenv("HIERA_PUSHGATEWAY", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert "did not take the last facts of tag: 220 mail" in leave_facts("tag", 0)


def test_a_dead_gateway_changes_nothing_but_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIERA_PUSHGATEWAY", "http://127.0.0.1:9")
    assert leave_facts("tag", 0).startswith("HIERA_PUSHGATEWAY=http://127.0.0.1:9: did not take the last facts of tag")
    monkeypatch.delenv("HIERA_PUSHGATEWAY")
    assert leave_facts("tag", 0) == ""
