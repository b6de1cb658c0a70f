"""Finding runs in MLflow, and the history of their metrics."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Never

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from jobs.core.errors import UserError
from jobs.runs.mlflow_limits import FAILURES
from pipeline.storage.errors import first_line

PAGE = 500
MESSAGE_LENGTH = 300
IDS_SHOWN = 12


def find_runs(client: MlflowClient, experiment: str, query: str = "", wanted: Sequence[str] = ()) -> list[Run]:
    """The runs of an experiment, newest first.

    Args:
        query: MLflow search filter; empty: all runs.
        wanted: run ids, their first characters, or run names; empty: all that match.

    Raises:
        UserError: MLflow does not answer, the experiment does not exist, MLflow rejects the query, a wanted run does
            not exist or is ambiguous, no run matches.
    """
    runs = _matching(client, _experiment_id(client, experiment), query)
    chosen = [_choose(runs, name) for name in wanted] if wanted else runs
    if not chosen:
        raise UserError(
            f"experiment={experiment}, query={query!r}: no run at {client.tracking_uri} matches; widen the query"
        )
    return chosen


def metric_history(client: MlflowClient, run_id: str, metric: str) -> dict[int, float]:
    """Step → value; of a step that was logged twice the later value."""
    entries = client.get_metric_history(run_id, metric)
    return {entry.step: entry.value for entry in sorted(entries, key=lambda entry: int(entry.timestamp))}


def _experiment_id(client: MlflowClient, name: str) -> str:
    try:
        experiment = client.get_experiment_by_name(name)
        known = [] if experiment else [other.name for other in client.search_experiments()]
    except FAILURES as error:
        _no_answer(client, error)
    if experiment is not None:
        return str(experiment.experiment_id)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known) or 'none'}"
    raise UserError(f"experiment={name}: does not exist at {client.tracking_uri}; {hint}")


def _matching(client: MlflowClient, experiment_id: str, query: str) -> list[Run]:
    try:
        return list(_search(client, experiment_id, query))
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            _no_answer(client, error)
        raise UserError(
            f"query={query!r}: MLflow rejects it: {first_line(error)[:MESSAGE_LENGTH]}; write for example "
            "\"metrics.top1 > 0.5 and tags.command = 'finetune'\""
        ) from error


def _search(client: MlflowClient, experiment_id: str, query: str) -> Iterator[Run]:
    page = client.search_runs([experiment_id], query, max_results=PAGE)
    yield from page
    while page.token:
        page = client.search_runs([experiment_id], query, max_results=PAGE, page_token=page.token)
        yield from page


def _choose(runs: Sequence[Run], wanted: str) -> Run:
    matches = [run for run in runs if run.info.run_id.startswith(wanted) or run.info.run_name == wanted]
    if len(matches) == 1:
        return matches[0]
    ids = [run.info.run_id[:8] for run in (matches or runs)][:IDS_SHOWN]
    rule = "matches more than one run" if matches else "no such run"
    raise UserError(f"runs={wanted}: {rule}; give the id of one of: {', '.join(ids) or 'none'}")


def _no_answer(client: MlflowClient, error: Exception) -> Never:
    raise UserError(
        f"tracking.uri={client.tracking_uri}: does not answer: {first_line(error)[:MESSAGE_LENGTH]}; check the server"
    ) from error
