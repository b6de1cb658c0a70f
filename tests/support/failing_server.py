"""A failing object store on loopback: counts its requests; answers 503, never answers, or refuses connections."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Mode = Literal["503", "hang", "refuse"]
LISTING = (
    b"<ListBucketResult><KeyCount>1</KeyCount><Contents><Key>key</Key><Size>4</Size><ETag>etag</ETag>"
    b"<LastModified>2024-01-01T00:00:00.000Z</LastModified></Contents></ListBucketResult>"
)


@dataclass
class FailingServer:
    """Where it listens, and what it saw."""

    url: str
    requests: int = 0


@contextlib.contextmanager
def failing_server(mode: Mode, content: bytes | None = None) -> Iterator[FailingServer]:
    """Serve until the context ends; connections that are refused cannot be counted.

    Args:
        content: makes every third request succeed: this is what every object contains.
    """
    if mode == "refuse":
        with socket.socket() as bound:  # bound, but not listening: the port refuses, and no other process gets it
            bound.bind(("127.0.0.1", 0))
            yield FailingServer(f"http://127.0.0.1:{bound.getsockname()[1]}")
        return
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    counted, ended = FailingServer(f"http://127.0.0.1:{server.server_port}"), threading.Event()
    server.RequestHandlerClass = _handler(counted, ended if mode == "hang" else None, content)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield counted
    finally:
        ended.set()
        server.shutdown()
        server.server_close()


def _handler(
    counted: FailingServer, hang_until: threading.Event | None, content: bytes | None
) -> type[BaseHTTPRequestHandler]:
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            with lock:
                counted.requests += 1
                good = content is not None and counted.requests % 3 == 0
            if hang_until is not None:
                hang_until.wait()
                self.close_connection = True
                return
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = (LISTING if "list-type" in self.path else content or b"") if good else b""
            if self.command not in ("GET", "HEAD"):
                body = b""
            self.send_response_only(200 if good else 503)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"etag"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any  # noqa: N815 the base class's names

        def log_message(self, format: str, *arguments: Any) -> None:
            """Quiet."""

    return Handler
