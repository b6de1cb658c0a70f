"""The rows that a tagging job writes: one a window in the table `tags`, one a video in the table `videos`."""

from __future__ import annotations

import pyarrow as pa

TAGS, VIDEOS = "tags", "videos"
"""The tables, as folders of an output."""

_TAG_FIELDS = (
    pa.field("uri", pa.string(), nullable=False),
    pa.field("video_id", pa.int64(), nullable=False),
    pa.field("content_version", pa.string(), nullable=False),
    pa.field("unit_id", pa.int64(), nullable=False),
    pa.field("window_index", pa.int64()),
    pa.field("start_seconds", pa.float64()),
    pa.field("end_seconds", pa.float64()),
    pa.field("labels", pa.list_(pa.string()), nullable=False),
    pa.field("scores", pa.list_(pa.float32()), nullable=False),
    pa.field("status", pa.string(), nullable=False),
    pa.field("message", pa.string(), nullable=False),
    pa.field("attempts", pa.int64(), nullable=False),
    pa.field("weights_digest", pa.string(), nullable=False),
    pa.field("run_key", pa.string(), nullable=False),
    pa.field("run_id", pa.string()),
)
EMBEDDING = pa.field("embedding", pa.list_(pa.float32()))


def tag_schema(embeddings: bool = False) -> pa.Schema:
    """One window: ``labels`` by falling ``scores``; ``status`` is ``ok`` or one word for the error.

    A video that could not be opened at all is one row without window and times. ``unit_id``: of the windows that are
    tagged and committed together, all those of a video. ``attempts``: attempts at the video. ``run_key`` is a tag of
    the MLflow run, ``run_id`` its id, where it was known. With embeddings there is a column ``embedding``, a list of
    float32 (the features before the head), null where the window failed.
    """
    return pa.schema([*_TAG_FIELDS, *([EMBEDDING] if embeddings else [])])


SPAN = pa.struct(
    [
        pa.field("label", pa.string(), nullable=False),
        pa.field("start_seconds", pa.float64(), nullable=False),
        pa.field("end_seconds", pa.float64(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
    ]
)
"""A stretch of consecutive windows that all have a label; ``score`` is the highest of theirs."""

VIDEO_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("video_id", pa.int64(), nullable=False),
        pa.field("content_version", pa.string(), nullable=False),
        pa.field("duration_seconds", pa.float64()),
        pa.field("frames", pa.int64()),
        pa.field("windows", pa.int64(), nullable=False),
        pa.field("windows_failed", pa.int64(), nullable=False),
        pa.field("labels", pa.list_(pa.string()), nullable=False),
        pa.field("scores", pa.list_(pa.float32()), nullable=False),
        pa.field("spans", pa.list_(SPAN), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error_class", pa.string()),
        pa.field("message", pa.string(), nullable=False),
        pa.field("attempts", pa.int64(), nullable=False),
        pa.field("weights_digest", pa.string(), nullable=False),
        pa.field("run_key", pa.string(), nullable=False),
        pa.field("run_id", pa.string()),
    ]
)
"""One video: the top ``labels`` by the mean of its windows' ``scores`` (a window that does not name a label counts 0),
and ``spans``, by start, of every label that a window names. ``status`` is ``ok``, ``partial`` (some windows failed,
or the file was cut off) or ``failed`` (no window was scored); ``error_class`` is one word for the first error,
``message`` describes it. ``frames`` are those that the file holds, null where it could not be opened: an image with
more than one is an animation, or has several pages, of which the first was tagged."""
