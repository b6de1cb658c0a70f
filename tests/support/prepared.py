"""A prepared set made in one call."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from pipeline.prepare.run import Outcome, PrepareSettings, finish_set, plan_set
from pipeline.shards.reader import read_shard
from pipeline.storage.files import join, read_json


def prepare(
    source: str, output: str, settings: PrepareSettings, *, exclude: Sequence[str] = (), workers: int | None = None
) -> Outcome:
    """Bring ``output`` up to date with ``source``, as `jobs.prepare` does."""
    planned = plan_set(source, output, settings, exclude)
    return planned if isinstance(planned, Outcome) else finish_set(planned, workers, lambda _done, _total: None)


def read_clips(output: str) -> pa.Table:
    """All clips of the newest version, with their bytes."""
    shards = read_json(join(output, "dataset.json"))["shards"]
    return pa.concat_tables([read_shard(join(output, shard["file"])) for shard in shards])
