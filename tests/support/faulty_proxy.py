"""A proxy before an object store that answers a share of the requests as a bad day would: 503, resets, stalls, cuts.

It counts what it does, and the bytes of videos.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import http.client
import multiprocessing
import random
import socket
import struct
import time
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.context import SpawnContext
from typing import Any

FAULTS = ("503", "reset", "stall", "cut")


class Counts:
    """How often the proxy did what, shared with its process: faults by name, and "passed"; and how often it shall."""

    NAMES = (*FAULTS, "passed")

    def __init__(self, context: SpawnContext, share: float) -> None:
        self._numbers = context.Array("q", len(self.NAMES))
        self._share = context.Value("d", share)
        self._video_bytes = context.Value("q", 0)

    @property
    def share(self) -> float:
        """Of the requests that meet a fault; may be set while the proxy serves."""
        return float(self._share.value)

    @share.setter
    def share(self, share: float) -> None:
        self._share.value = share

    @property
    def video_bytes(self) -> int:
        """Bytes of MP4 files in answers."""
        return int(self._video_bytes.value)

    def add_video_bytes(self, count: int) -> None:
        """Count some more."""
        with self._video_bytes.get_lock():
            self._video_bytes.value += count

    def total(self) -> int:
        """Requests so far."""
        return sum(self[name] for name in self.NAMES)

    def __getitem__(self, name: str) -> int:
        return int(self._numbers[self.NAMES.index(name)])

    def add(self, name: str) -> None:
        with self._numbers.get_lock():
            self._numbers[self.NAMES.index(name)] += 1


@dataclasses.dataclass
class Weather:
    """What the proxy does to requests."""

    server: str
    faults: tuple[str, ...]
    stall_seconds: float
    draw: random.Random
    counts: Counts

    def next(self) -> str:
        fault = self.draw.choice(self.faults) if self.draw.random() < self.counts.share else "passed"
        self.counts.add(fault)
        return fault


@contextlib.contextmanager
def faulty_proxy(
    server: str, share: float, stall_seconds: float, seed: int = 0, faults: tuple[str, ...] = FAULTS
) -> Iterator[tuple[str, Counts]]:
    """Yield the proxy's URL and a running count of what it did.

    In a process of its own: Delta Lake's client holds the interpreter lock while it waits for some of its requests.
    """
    context = multiprocessing.get_context("spawn")
    counts = Counts(context, share)
    weather = Weather(server, faults, stall_seconds, random.Random(seed), counts)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        proxy = context.Process(target=_serve, args=(weather, listening), daemon=True)
        proxy.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", counts
        finally:
            proxy.kill()
            proxy.join()


def _serve(weather: Weather, listening: socket.socket) -> None:
    proxy = ThreadingHTTPServer(listening.getsockname(), functools.partial(_Handler, weather), bind_and_activate=False)
    proxy.socket.close()
    proxy.socket, proxy.daemon_threads = listening, True
    proxy.serve_forever()


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
        passed = content[: len(content) // 2] if cut else content
        if self.command == "GET" and urllib.parse.urlsplit(self.path).path.endswith(".mp4"):
            self.weather.counts.add_video_bytes(len(passed))
        self._answer(response.status, headers, passed)
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
