"""A proxy before an object store that answers a share of the requests as a bad day would: 503, resets, stalls, cuts."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import http.client
import random
import socket
import struct
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = ("503", "reset", "stall", "cut")


@dataclasses.dataclass
class Weather:
    """What the proxy does to requests, and how often it did."""

    server: str
    share: float
    stall_seconds: float
    draw: random.Random
    counts: Counter[str] = dataclasses.field(default_factory=Counter)

    def next(self) -> str:
        fault = self.draw.choice(FAULTS) if self.draw.random() < self.share else "passed"
        self.counts[fault] += 1
        return fault


@contextlib.contextmanager
def faulty_proxy(server: str, share: float, stall_seconds: float, seed: int = 0) -> Iterator[tuple[str, Counter[str]]]:
    """Yield the proxy's URL and a running count of what it did (faults by name, and "passed")."""
    weather = Weather(server, share, stall_seconds, random.Random(seed))
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, weather))
    proxy.daemon_threads = True
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{proxy.server_address[1]}", weather.counts
    finally:
        proxy.shutdown()
        proxy.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, weather: Weather, *arguments: Any) -> None:
        self.weather = weather
        super().__init__(*arguments)

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.weather.next()
        if fault == "503":
            self._answer(503, {"Content-Type": "application/xml"}, _SLOW_DOWN)
        elif fault in ("reset", "stall"):
            time.sleep(self.weather.stall_seconds if fault == "stall" else 0)
            self._reset()
        else:
            self._forward(body, cut=fault == "cut")

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any  # noqa: N815 the base class's names

    def log_message(self, format: str, *arguments: Any) -> None:
        """Quiet."""

    def _forward(self, body: bytes, cut: bool) -> None:
        target = urllib.parse.urlsplit(self.weather.server)
        connection = http.client.HTTPConnection(target.hostname or "", target.port)
        connection.request(self.command, self.path, body, dict(self.headers))
        response = connection.getresponse()
        content = response.read()
        connection.close()
        headers = {k: v for k, v in response.getheaders() if k.lower() not in ("connection", "transfer-encoding")}
        if self.command != "HEAD":
            headers["Content-Length"] = str(len(content))
        self._answer(response.status, headers, content[: len(content) // 2] if cut else content)
        if cut:
            self._reset()

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.wfile.flush()

    def _reset(self) -> None:
        """Close so that the other side sees a reset, not an end."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.shutdown(socket.SHUT_RD)


_SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
