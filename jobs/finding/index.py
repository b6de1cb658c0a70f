"""An index over the embeddings of a snapshot, for more windows than an exact search compares in a few seconds.

HNSW by usearch, an optional dependency (`pip install 'hiera-video-system[search]'`), as a local file that is mapped
into memory. A window's key is the number of its file among the snapshot's and its row among the file's scored ones.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.core.cli import echo
from jobs.core.errors import UserError
from jobs.finding.nearest import SIMILARITY
from jobs.finding.windows import WINDOW_COLUMNS, Floats, scored_part, scored_parts, unit_embeddings
from pipeline.tagging.reader import TagSnapshot

try:
    from usearch.index import Index
except ImportError:
    Index = None

ROW_BITS = 32
STORED = "f16"
"""Type of the stored values: half the memory, and cosines to three digits."""
CONSIDERED = 2048
"""Windows that a search looks at; usearch's own 64 finds 15 % of the nearest among random vectors, these 92 %."""


def nearest_by_index(snapshot: TagSnapshot, query: Floats, count: int, folder: Path) -> pa.Table:
    """As `jobs.finding.nearest.nearest`, approximately; the index is made where the folder has none of this snapshot.

    Several outputs may have the folder in common.

    Raises:
        UserError: usearch is not installed.
    """
    refuse_without_library(snapshot)
    path = folder / f"{_prefix(snapshot)}{_digest(snapshot.files())}.usearch"
    index = _stored(path)
    if index is None:
        index = _built(snapshot, path)
    index.expansion_search = CONSIDERED
    matches = index.search(query, count)
    similarity = 1 - np.asarray(matches.distances, np.float32)
    return _rows(snapshot, np.asarray(matches.keys, np.uint64)).append_column(SIMILARITY, pa.array(similarity))


def refuse_without_library(snapshot: TagSnapshot) -> None:
    """`UserError` where usearch is not installed."""
    if Index is None:
        raise UserError(
            f"output={snapshot.output}: holds {len(snapshot):,} windows, which need an index; "
            "`pip install 'hiera-video-system[search]'`, or set exact_windows higher and wait longer"
        )


def _prefix(snapshot: TagSnapshot) -> str:
    """What the names of an output's indexes begin with."""
    return f"windows-{_digest([snapshot.output])}-"


def _digest(names: Sequence[str]) -> str:
    """Of an output, or of a snapshot's files, whose names are unique."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def _stored(path: Path) -> Any | None:
    """An index, mapped into memory; None where there is no file: a search of another snapshot may delete it."""
    try:
        return Index.restore(str(path), view=True)
    except (OSError, RuntimeError):
        if path.exists():
            raise
        return None


def _built(snapshot: TagSnapshot, path: Path) -> Any:
    """A new index, also written in place of those of the output's other snapshots."""
    echo(f"indexing {len(snapshot):,} windows in {path}")
    index = None
    for number, part in enumerate(scored_parts(snapshot, ["embedding"])):
        if len(part):
            vectors = unit_embeddings(part)
            index = index or Index(ndim=vectors.shape[1], metric="cos", dtype=STORED)
            index.add((np.uint64(number) << np.uint64(ROW_BITS)) + np.arange(len(part), dtype=np.uint64), vectors)
    assert index is not None  # nobody needs an index of nothing
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    index.save(str(unfinished))
    unfinished.replace(path)
    for other in path.parent.glob(f"{_prefix(snapshot)}*.usearch"):
        if other != path:
            other.unlink(missing_ok=True)
    return index


def _rows(snapshot: TagSnapshot, keys: np.ndarray) -> pa.Table:
    """The windows of these keys, in their order; only their files are read."""
    files, rows = keys >> np.uint64(ROW_BITS), keys & np.uint64(2**ROW_BITS - 1)
    order, tables, named = [], [], snapshot.files()
    for number in np.unique(files):
        here = np.flatnonzero(files == number)
        tables.append(scored_part(snapshot, named[number], WINDOW_COLUMNS).take(pa.array(rows[here])))
        order.append(here)
    return pa.concat_tables(tables).take(pa.array(np.argsort(np.concatenate(order))))
