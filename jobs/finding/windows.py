"""The scored windows of a snapshot and their embeddings.

Legend: N windows, D values of an embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.core.errors import UserError
from pipeline.media import Media
from pipeline.schema import OK
from pipeline.storage.files import absolute
from pipeline.tagging.reader import TagSnapshot

WINDOW_COLUMNS = ("uri", "window_index", "start_seconds", "end_seconds", "labels", "scores")
EMBEDDED_COLUMNS = (*WINDOW_COLUMNS, "embedding")

Floats = npt.NDArray[np.float32]


def open_snapshot(output: str, as_of: str | None) -> TagSnapshot:
    """The tags of an output, now or as they were.

    Args:
        as_of: a version's number, or a time stamp.

    Raises:
        StorageError: there are none.
    """
    return TagSnapshot(absolute(output), int(as_of) if as_of is not None and as_of.isdecimal() else as_of)


def refuse_without_embeddings(snapshot: TagSnapshot) -> None:
    """`UserError` where the tags were written without embeddings."""
    if not snapshot.has_embeddings:
        raise UserError(
            f"output={snapshot.output}: holds no embeddings; tag into a new output with embeddings=true and give that"
        )


def media_of(snapshot: TagSnapshot) -> Media:
    """What was tagged: a view of an image has one frame."""
    frames, *_ = snapshot.settings.get("input_size", [0])
    return "image" if frames == 1 else "video"


def scored_parts(snapshot: TagSnapshot, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The windows that have scores, a table for each file; no video's windows are in two of them."""
    yield from (scored_part(snapshot, file, columns) for file in snapshot.files())


def scored_part(snapshot: TagSnapshot, file: str, columns: Sequence[str]) -> pa.Table:
    """The windows of one file that have scores."""
    part = snapshot.part(file, [*columns, "status"])
    return part.filter(pc.equal(part["status"], OK)).select(list(columns))


def unit_embeddings(part: pa.Table) -> Floats:
    """Embeddings ``[N, D]`` of length 1, so that their products are cosines."""
    if not len(part):
        return np.empty((0, 0), np.float32)
    flat = pc.list_flatten(part["embedding"]).to_numpy()
    return unit_length(flat.reshape(len(part), -1))


def unit_length(vectors: Floats) -> Floats:
    """Vectors ``[..., D]`` divided by their length; one of length 0 stays as it is."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1), np.float32)
