"""A decoding child that was taken over by its video: it sends the file's content as its messages."""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path

from pipeline.confinement.messages import write_message
from pipeline.decode.child_loop import Replies, serve
from pipeline.decode.child_process import IsolatedService
from pipeline.decode.requests import DecodeImages, DecodeViews, Probe, Validate
from pipeline.transcode.config import TranscodeConfig


def hijack(service: IsolatedService) -> None:
    """Have children of this module answer a service."""
    IsolatedService.close(service)
    _, *others = service._start.args
    service._start = functools.partial(service._start.func, __name__, *others)


def saying(path: Path, *messages: tuple[str, object]) -> Path:
    """Write a "video" that has its child send these kinds and contents."""
    with path.open("wb") as file:
        for kind, content in messages:
            write_message(file, kind, content)
    return path


def send_the_video(path: str, request: object, replies: Replies) -> None:
    """Its first megabyte."""
    replies._parent.write(os.pread(int(path.rpartition("/")[2]), 2**20, 0))
    replies._parent.flush()
    time.sleep(60)


def main(connection_file: int) -> None:
    """Serve the parent."""
    serve(connection_file, dict.fromkeys((Probe, Validate, DecodeViews, DecodeImages, TranscodeConfig), send_the_video))
