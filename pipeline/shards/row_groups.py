"""Row groups of an open shard: whole, or only the videos of a few rows."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.shards.digests import REMEDY, digest_of_parts, other_clips, refuse_other_clips, video_digests
from pipeline.storage.files import StorageError, filesystem
from pipeline.storage.parquet import open_parquet
from pipeline.storage.records import parse_json

VIDEO_SPANS = "video_spans"
"""Key of a shard's own metadata: first byte and length of each video, as JSON; a null has the length -1."""
VIDEO_DIGESTS = "video_digests"
"""The same for SHA-256 of each video (`digests.video_digests`)."""
WORTH_IT = 0.5
"""Videos are read singly when they are less than this share of their row group's: a request each, but fewer bytes."""


class OpenShard:
    """A shard whose footer is read; Arrow's readers want one thread at a time."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        files, path = filesystem(uri)
        self._source = files.open_input_file(path)
        self._file = open_parquet(self._source, uri, pre_buffer=True)
        self._lock = threading.Lock()
        metadata = self._file.metadata
        sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        self._first_row = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._spans, self._digests = _spans_and_digests(uri, metadata.metadata or {}, int(self._first_row[-1]))

    def read(self, number: int, rows: npt.NDArray[np.int64], digest: str = "") -> tuple[pa.Table, int]:
        """Some rows of a row group, and how many bytes of it were read.

        Args:
            digest: of the row group (`digests.group_digest`), empty for no comparison.

        Raises:
            StorageError: the row group holds other clips than were prepared.
            OSError: it cannot be read.
        """
        with self._lock:
            if self._spans is not None:
                spans = self._spans[self._first_row[number] : self._first_row[number + 1]]
                lengths = np.maximum(spans[:, 1], 0)
                if lengths[rows].sum() < WORTH_IT * lengths.sum():
                    return self._read_singly(number, rows, spans[rows], digest)
            table = self._file.read_row_group(number)
        refuse_other_clips(self._uri, number, table, digest)
        return (table if len(rows) == len(table) else table.take(pa.array(rows))), table.nbytes

    def _read_singly(
        self, number: int, rows: npt.NDArray[np.int64], spans: npt.NDArray[np.int64], digest: str
    ) -> tuple[pa.Table, int]:
        schema = self._file.schema_arrow
        others = self._file.read_row_group(number, [name for name in schema.names if name != "video"])
        videos = pa.chunked_array(
            [[None if length < 0 else self._bytes(first, length) for first, length in spans.tolist()]],
            schema.field("video").type,
        )
        if digest:
            expected = self._digests[self._first_row[number] : self._first_row[number + 1]]
            is_whole = len(expected) == len(others) and digest_of_parts(others, expected) == digest
            if not is_whole or video_digests(videos) != [expected[row] for row in rows.tolist()]:
                raise other_clips(self._uri, number)
        table = others.take(pa.array(rows)).append_column("video", videos)
        return table.select(schema.names), others.nbytes + int(np.maximum(spans[:, 1], 0).sum())

    def _bytes(self, first: int, length: int) -> bytes:
        content: bytes = self._source.read_at(length, first)
        if len(content) < length:
            raise OSError(f"{len(content)} bytes of {length} at {first}")
        return content


def _spans_and_digests(
    uri: str, footer: Mapping[bytes, bytes], videos: int
) -> tuple[npt.NDArray[np.int64] | None, list[str | None]]:
    """First byte and length, and digest, of each video; none in shards of earlier releases.

    Raises:
        StorageError: a footer that is damaged.
    """
    if VIDEO_SPANS.encode() not in footer:
        return None, []
    try:
        spans = np.array(parse_json(footer[VIDEO_SPANS.encode()]), np.int64).reshape(-1, 2)
        digests = list(parse_json(footer[VIDEO_DIGESTS.encode()]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise StorageError(uri, f"is damaged: its footer lists no videos ({error})", REMEDY) from error
    if not len(spans) == len(digests) == videos:
        raise StorageError(uri, f"is damaged: its footer lists {len(spans)} videos of {videos}", REMEDY)
    return spans, digests
