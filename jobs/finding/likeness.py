"""The windows that look like a moment of a video, compared one by one or found by an index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from jobs.core.errors import UserError
from jobs.finding.index import nearest_by_index
from jobs.finding.nearest import nearest
from jobs.finding.query import Moment, OutsideConfig, Query, query_of
from jobs.finding.windows import refuse_without_embeddings
from pipeline.storage.files import join, local_path
from pipeline.tagging.reader import TagSnapshot

INDEX_FOLDER = "index"


@dataclass(frozen=True)
class Means:
    """How to search."""

    exact_windows: int
    """Most windows that are compared one by one."""
    index: str | None
    """Folder of the index; default: `INDEX_FOLDER` under the output."""


def windows_like(moment: Moment, snapshot: TagSnapshot, count: int, means: Means, outside: OutsideConfig) -> pa.Table:
    """The windows that are most like a moment, without its own (`jobs.finding.nearest.nearest`).

    Raises:
        UserError: no embeddings, a moment that cannot be embedded, no library or local folder for the index.
    """
    refuse_without_embeddings(snapshot)
    query = query_of(moment, snapshot, outside)
    wanted = count + 1  # one may be the query itself
    if len(snapshot) <= means.exact_windows:
        found = nearest(snapshot, query.embedding, wanted)
    else:
        found = nearest_by_index(snapshot, query.embedding, wanted, _index_folder(means, snapshot))
    return _without_itself(found, query).slice(0, count)


def _without_itself(found: pa.Table, query: Query) -> pa.Table:
    if query.uri is None:
        return found
    itself = pc.and_(pc.equal(found["uri"], query.uri), pc.equal(found["window_index"], query.window_index))
    return found.filter(pc.invert(itself))


def _index_folder(means: Means, snapshot: TagSnapshot) -> Path:
    folder = local_path(means.index or join(snapshot.output, INDEX_FOLDER))
    if folder is None:
        raise UserError(f"index={means.index}: must be a local folder, the index is mapped into memory; give one")
    return folder
