"""A prepared set made in one call."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.prepare.run import Outcome, PrepareSettings, finish_set, plan_set


def prepare(
    source: str, output: str, settings: PrepareSettings, *, exclude: Sequence[str] = (), workers: int | None = None
) -> Outcome:
    """Bring ``output`` up to date with ``source``, as `jobs.prepare` does."""
    planned = plan_set(source, output, settings, exclude)
    return planned if isinstance(planned, Outcome) else finish_set(planned, workers, lambda _done, _total: None)
