"""What is sent to MLflow: every step once, in bounded requests, and never in the way."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.utils.validation import MAX_METRICS_PER_BATCH as METRICS_PER_REQUEST

from jobs.runs.fencing import SupersededError
from jobs.runs.mlflow_sender import OTHER_PARAMS, OTHER_TAGS, SAMPLES_KEPT, Run
from jobs.runs.tracking import recorded
from tests.support.run_output import journal_lines
from tests.support.tracked_runs import NOBODY, recorded_run, started, steps

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


def wait_until(condition: Callable[[], object]) -> None:
    ends_at = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.1)


def stored_json(store: str, run_id: str, name: str) -> Any:
    return json.loads(Path(MlflowClient(tracking_uri=store).download_artifacts(run_id, name)).read_text())


def test_a_run_killed_with_unsent_steps_has_each_step_once_in_the_end(store: str) -> None:
    lines = journal_lines(40)
    first = started(store, "killed")
    first.log_steps(lines[:10])
    assert first.drain()
    second = started(store, "killed")  # steps 11 to 20 died with their process; 5 to 10 are repeated
    second.log_steps([line | {"unix_seconds": time.time() + 9} for line in [*lines[4:10], *lines[20:]]])
    second.fill_gaps(lines)
    assert second.finish()
    assert first.run_id == second.run_id
    assert steps(store, second.run_id) == list(range(1, 41))
    assert steps(store, second.run_id, "validation_knn_top1") == [10, 20, 30, 40]


def test_a_start_that_takes_over_repeats_no_step_and_the_other_says_nothing_more(store: str) -> None:
    lines = journal_lines(12)
    first = started(store, "taken")
    first.wait_for_id(10)
    second = started(store, "taken")
    second.log_steps(lines[:2])
    wait_until(lambda: steps(store, second.wait_for_id(10)) == [1, 2])
    first.log_steps(lines[2:6])  # until it noticed
    wait_until(lambda: len(steps(store, second.run_id)) == 6)
    second.refresh_known_steps()
    second.log_steps([line | {"unix_seconds": time.time() + 9} for line in lines[2:]])
    assert second.finish()
    with pytest.raises(SupersededError), recorded(first):
        raise SupersededError("a later start has taken over")
    first.log_steps(journal_lines(20)[12:])
    first._thread.join(10)
    assert not first._thread.is_alive()
    assert recorded_run(store, "taken").info.status == "FINISHED"
    assert steps(store, second.run_id) == list(range(1, 13))


def test_nobody_there_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    run = Run(NOBODY, "tests", "nobody", {})
    lines = journal_lines(1000)
    began = time.thread_time()
    for line in lines:
        run.log_steps([line])
    seconds_a_step = (time.thread_time() - began) / len(lines)
    assert seconds_a_step < 0.001  # 1 % of a step of 100 ms
    began = time.perf_counter()
    assert not run.finish(wait_seconds=1.5)
    assert time.perf_counter() - began < 10
    told = [record.getMessage() for record in caplog.records]
    assert any("does not answer" in text for text in told)
    assert any("jobs.sync" in text for text in told)
    assert not any("a-password" in text for text in told)


def test_what_cannot_be_uploaded_holds_nothing_up(store: str, tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"a picture")
    run = started(store, "artifact")
    run.log_artifact(tmp_path / "picture.png")
    (tmp_path / "picture.png").unlink()  # taken when it was logged
    run.log_artifact(Path(__file__), folder="no/../such")
    run.log_metrics({"final": 1.0, "wild": float("nan")})
    assert not run.finish()
    assert run.refused == (Path(__file__).name,)
    found = recorded_run(store, "artifact")
    assert found.data.metrics == {"final": 1.0}
    names = [file.path for file in MlflowClient(tracking_uri=store).list_artifacts(found.info.run_id)]
    assert names == ["picture.png"]


def test_the_figures_of_a_large_cluster_go_in_several_requests(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server refuses larger ones; a store that is opened directly takes them."""
    real, sizes = MlflowClient.log_batch, list[int]()

    def log_batch(client: MlflowClient, run_id: str, metrics: Sequence[Metric] = (), **others: Any) -> Any:
        sizes.append(len(metrics))
        return real(client, run_id, metrics=metrics, **others)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    run = started(store, "large")
    run.log_metrics({f"once/{number}": 1.0 for number in range(METRICS_PER_REQUEST + 1)})
    run.log_sample({f"system/host{number}/cpu_percent": 2.0 for number in range(METRICS_PER_REQUEST + 1)}, step=1)
    assert run.finish()
    assert len(recorded_run(store, "large").data.metrics) == 2 * (METRICS_PER_REQUEST + 1)
    assert max(sizes) == METRICS_PER_REQUEST


def test_samples_for_a_dead_server_fill_no_memory() -> None:
    run = Run(NOBODY, "tests", "samples", {})
    for step in range(SAMPLES_KEPT + 10):
        run.log_sample({"cpu_percent": 1.0}, step=step)
    assert [len(run._samples), len(run._outbox)] == [SAMPLES_KEPT, 0]
    assert run._samples[0][0].step == 10
    run.drain(0)


def test_one_odd_label_costs_no_other_parameter(store: str, caplog: pytest.LogCaptureFixture) -> None:
    """Keys with other characters, untidy paths and long values go to an artifact; what is refused is named."""
    odd = {"massaging person's head": 0.3, "a" * 250: 0.4, "../up": 0.5, "x//y": 0.6, "sitting, down": 0.7}
    params = {"top_k": 5, "thresholds": {"jumping": 0.25, "jümping / up": 0.3, **odd}, "labels": ["x" * 5996]}
    run = started(store, "odd")
    run.log_params(params)
    assert run.finish()
    found = recorded_run(store, "odd")
    taken = {
        "top_k": "5",
        "thresholds.jumping": "0.25",
        "thresholds.jümping / up": "0.3",
        "labels": str(params["labels"]),
    }
    assert found.data.params == {**taken, "thresholds.../up": "0.5"}
    others = {f"thresholds.{key}": odd[key] for key in odd if key != "../up"}
    assert stored_json(store, found.info.run_id, OTHER_PARAMS) == others
    again = started(store, "odd")
    again.log_params({"top_k": 6, "fresh": 1})  # a key that may differ between starts
    again.log_metrics({"loss'": 1.0, "good": 2.0})
    again.set_tags({"t" * 300: "x", "note": "y"})
    assert not again.finish()
    found = recorded_run(store, "odd")
    assert (found.data.params["top_k"], found.data.params["fresh"]) == ("5", "1")
    assert (found.data.metrics, found.data.tags["note"]) == ({"good": 2.0}, "y")
    assert stored_json(store, found.info.run_id, OTHER_TAGS) == {"t" * 300: "x"}
    assert again.refused == ("loss'",)
    assert any("does not have 1 entries of this run" in record.getMessage() for record in caplog.records)


ODD_TAGS = {"a,b": "1", "": "empty", "long": "x" * 9000, "../up": "2", "nul": "\0", "not UTF-8": "/videos/\udcff.mp4"}


def test_odd_tags_cost_neither_the_run_nor_the_other_tags(store: str) -> None:
    run = Run(store, "tests", "tags", {"command": "pretrain", **ODD_TAGS})
    run.set_tags({"c'd": "3", "note": "kept", **{f"label {number}": "x" * 5900 for number in range(201)}})
    run.log_params({"path": "/videos/\udcff.mp4"})
    run.log_metrics({"final": 1.0})
    assert run.finish()
    found = recorded_run(store, "tags")
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"final": 1.0})
    assert found.data.params == {"path": "/videos/\\udcff.mp4"}
    assert (found.data.tags["command"], found.data.tags["note"]) == ("pretrain", "kept")
    assert found.data.tags["not UTF-8"] == "/videos/\\udcff.mp4"
    assert sum(name.startswith("label ") for name in found.data.tags) == 201
    odd = {key: value for key, value in ODD_TAGS.items() if key != "not UTF-8"}
    assert stored_json(store, found.info.run_id, OTHER_TAGS) == {**odd, "c'd": "3"}


def test_a_run_whose_tags_the_store_refuses_is_created_without_the_refused_one(store: str) -> None:
    """A real refusal of `create_run`: MLflow generates a name beside an empty one, and both have one key."""
    run = Run(store, "tests", "refused", {"command": "pretrain", "mlflow.runName": "", "note": "kept"})
    run.log_steps(journal_lines(3))
    run.finish()
    found = recorded_run(store, "refused")
    assert (found.data.tags["command"], found.data.tags["note"]) == ("pretrain", "kept")
    assert steps(store, run.run_id) == [1, 2, 3]


@pytest.mark.parametrize("odd", ["k'nn", "", "a//b", "m" * 300])
def test_a_refused_metric_costs_no_other_of_its_batch(store: str, odd: str, caplog: pytest.LogCaptureFixture) -> None:
    key = f"metric {len(odd)}"
    lines = [line | {"validation": {odd: 0.5, "top1": 0.25}} for line in journal_lines(30)]
    # `series_entries` puts a word before the name, so that of the empty one is in order.
    run = started(store, key)
    run.log_steps(lines[:20])
    run.fill_gaps(lines)
    run.log_sample({odd: 1.0, "system/cpu_percent": 2.0}, step=1)
    run.log_metrics({odd: 1.0, "wild": float("nan"), "endless": float("inf"), "final": 3.0})
    run.log_missing_metrics({odd: 1.0, "late": 4.0})
    assert not run.finish()
    assert odd in run.refused
    assert set(run.refused) <= {odd, f"validation_{odd}"}
    found = recorded_run(store, key)
    assert found.info.status == "FINISHED"
    assert {"final": 3.0, "late": 4.0, "system/cpu_percent": 2.0}.items() <= found.data.metrics.items()
    assert not {"wild", "endless"} & found.data.metrics.keys()
    assert any("left out: wild, endless" in record.getMessage() for record in caplog.records)
    assert steps(store, run.run_id) == steps(store, run.run_id, "validation_top1") == list(range(1, 31))


def test_a_deleted_experiment_is_named_with_its_remedy(store: str, caplog: pytest.LogCaptureFixture) -> None:
    client = MlflowClient(tracking_uri=store)
    client.delete_experiment(client.create_experiment("deleted"))
    assert not Run(store, "deleted", "key", {}).finish()
    assert any(
        "tracking.experiment=deleted: is deleted; restore it" in record.getMessage() for record in caplog.records
    )
