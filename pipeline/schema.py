"""The Arrow contract of a prepared set: what one stored clip, and one rejected video, is."""

from __future__ import annotations

import hashlib
import struct

import pyarrow as pa

CLIP_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("start_seconds", pa.float64(), nullable=False),
        pa.field("end_seconds", pa.float64(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("split", pa.string()),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("fps", pa.float64(), nullable=False),
        pa.field("num_frames", pa.int64(), nullable=False),
        pa.field("video", pa.large_binary()),
    ]
)
"""One clip. ``label`` is a name of ``classes.json`` (null: unlabelled); ``start_seconds`` and ``end_seconds`` are the
span in the video at ``uri``; ``width`` and ``height`` are pixels as shown (after rotation), ``fps`` and ``num_frames``
are those of the stored bytes. A null ``video`` means that the bytes stay at ``uri`` (prepare's ``reference``)."""

REJECTED_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
    ]
)
"""One video that is not in the set; ``reason`` is one word to count by, ``message`` explains it to a person."""

UNLABELLED = -1
"""Class index of a clip without a label in the decoded batches."""

OK, PARTIAL, FAILED = "ok", "partial", "failed"
"""Statuses of videos, windows and views; any other status is the one word for why there are no scores."""


def clip_id(uri: str, content_version: str, start_seconds: float, end_seconds: float) -> int:
    """A clip's id: the same for the same bytes and span, different after the video changed.

    Args:
        content_version: what changes with the content of the URI (an ETag; size and time; a digest).

    Returns:
        A non-negative int64 from a 63-bit digest: two of ten million clips collide with a probability of 1 in 180,000.
    """
    name = uri.encode(errors="surrogateescape")
    version = content_version.encode()
    parts = (struct.pack("<q", len(name)), name, struct.pack("<q", len(version)), version)
    span = struct.pack("<dd", start_seconds, end_seconds)
    digest = hashlib.blake2b(b"".join(parts) + span, digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
