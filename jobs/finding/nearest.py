"""The windows with the highest values: likeness to one embedding, or the score of a label.

Files are read one after the other, and only the best rows so far are kept. Legend: D values of an embedding.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.core.errors import UserError
from jobs.finding.windows import EMBEDDED_COLUMNS, WINDOW_COLUMNS, Floats, scored_parts, unit_embeddings, unit_length
from pipeline.tagging.reader import TagSnapshot
from pipeline.tagging.schema import tag_schema

SIMILARITY, SCORE = "similarity", "score"
SUGGESTED_LABELS = 8


def nearest(snapshot: TagSnapshot, query: Floats, count: int) -> pa.Table:
    """The windows whose embeddings are most like one (exactly, by cosine): `WINDOW_COLUMNS` and `SIMILARITY`.

    Args:
        query: ``[D]``.
    """
    direction = unit_length(query)
    parts = (part for part in scored_parts(snapshot, EMBEDDED_COLUMNS) if len(part))
    return highest(((part, unit_embeddings(part) @ direction) for part in parts), count, SIMILARITY)


def labelled(snapshot: TagSnapshot, label: str, min_score: float, count: int) -> pa.Table:
    """The windows with the highest scores of a label: `WINDOW_COLUMNS` and `SCORE`.

    Raises:
        UserError: no window has this label.
    """
    known: set[str] = set()
    found = highest(_scores_of(snapshot, label, known), count, SCORE)
    if label not in known:
        near = difflib.get_close_matches(label, sorted(known), SUGGESTED_LABELS, 0.0)
        raise UserError(f"label={label}: no window of output={snapshot.output} has it; some that occur: {near}")
    return found.filter(pc.greater_equal(found[SCORE], min_score))


def _scores_of(
    snapshot: TagSnapshot, label: str, known: set[str]
) -> Iterable[tuple[pa.Table, npt.NDArray[np.floating]]]:
    """The windows that have a label and their scores of it; all labels are added to ``known``."""
    for part in scored_parts(snapshot, WINDOW_COLUMNS):
        labels = pc.list_flatten(part["labels"])
        known.update(pc.unique(labels).to_pylist())
        named = pc.equal(labels, label)
        rows = part.take(pc.list_parent_indices(part["labels"]).filter(named))
        yield rows, pc.list_flatten(part["scores"]).filter(named).to_numpy()


def highest(
    parts: Iterable[tuple[pa.Table, npt.NDArray[np.floating]]],
    count: int,
    name: str,
    columns: Sequence[str] = WINDOW_COLUMNS,
) -> pa.Table:
    """Some columns of the rows with the highest values, by falling values, which become the column ``name``."""
    schema = tag_schema(embeddings=True)
    best = pa.schema([*(schema.field(column) for column in columns), (name, pa.float32())]).empty_table()
    for rows, values in parts:
        valued = rows.select(list(columns)).append_column(name, pa.array(values, pa.float32()))
        joined = pa.concat_tables([best, valued])
        best = joined.take(pa.array(np.argsort(-joined[name].to_numpy(), kind="stable")[:count]))
    return best
