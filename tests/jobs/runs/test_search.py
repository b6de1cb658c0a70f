"""Finding runs that MLflow really holds."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

from jobs.core.errors import UserError
from jobs.runs.search import find_runs, metric_history
from jobs.runs.tracking import TrackingTarget

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    """One pretraining run and two fine-tuning runs of the same name."""
    client = MlflowClient(f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}")
    experiment = client.create_experiment("motion")
    for command, top1 in (("pretrain", 0.1), ("finetune", 0.7), ("finetune", 0.9)):
        run_id = client.create_run(experiment, tags={"command": command}, run_name=f"{command} run").info.run_id
        client.log_metric(run_id, "validation_top1", top1, step=1)
    return client


def test_query_and_run_names_choose(client: MlflowClient) -> None:
    assert len(find_runs(client, "motion")) == 3
    assert len(find_runs(client, "motion", "metrics.validation_top1 > 0.8")) == 1
    (chosen,) = find_runs(client, "motion", wanted=["pretrain run"])
    assert find_runs(client, "motion", wanted=[chosen.info.run_id[:10]])[0].info.run_id == chosen.info.run_id


@pytest.mark.parametrize(
    ("experiment", "query", "wanted", "message"),
    [
        ("motion", "metrics.top1 >", (), "^query='metrics.top1 >': MLflow rejects it"),
        ("motion", "metrics.top1 > 2", (), r"no run at sqlite:/\S+ matches; widen"),
        ("motion", "", ("finetune run",), "^runs=finetune run: matches more than one run; give the id of one of: "),
        ("motion", "", ("other",), "^runs=other: no such run"),
        ("motoin", "", (), "^experiment=motoin: does not exist .* did you mean motion"),
    ],
)
def test_mistakes(client: MlflowClient, experiment: str, query: str, wanted: Sequence[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_runs(client, experiment, query, wanted)


def test_a_silent_server_is_no_mistake_in_the_query() -> None:
    place = TrackingTarget("http://me:hunter2@127.0.0.1:9")
    with pytest.raises(UserError, match=r"^tracking.uri=http://\S+127.0.0.1:9: does not answer"):
        find_runs(place.client(), "hiera-video", "metrics.top1 > 0")


def test_a_step_that_was_logged_again_has_its_later_value(client: MlflowClient) -> None:
    run_id = find_runs(client, "motion")[0].info.run_id
    client.log_batch(run_id, [Metric("loss", value, time, 3) for value, time in ((0.2, 9000), (0.4, 1000))])
    assert metric_history(client, run_id, "loss") == {3: 0.2}
