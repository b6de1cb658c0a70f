"""Comparing runs that MLflow really holds."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from rich.console import Console

from jobs.compare import (
    CompareConfig,
    TrackingPlace,
    best_index,
    best_run,
    by_command,
    command_table,
    differing_parameters,
    find_runs,
    link_tree,
    run,
    with_evaluations,
)
from jobs.core.cli import print_report, replace
from jobs.core.errors import UserError

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CompareConfig:
    """Two chains: pretraining → fine-tuning (two learning rates) → tagging."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("motion")
    pretrain = _record(client, experiment, "pretrain", {"seed": "1"}, {"loss": 0.5}, {})
    for rate, top1 in (("8e-4", 0.7), ("4e-4", 0.9)):
        links = {"pretrain_run_id": pretrain}
        figures = {
            "validation_top1": top1,
            "loss": 1 - top1 if top1 < 0.8 else 0.9,
        }  # the better run has the higher loss
        tune = _record(client, experiment, "finetune", {"seed": "1", "learning_rate": rate}, figures, links)
        tuned = links | {"finetune_run_id": tune}
        _record(client, experiment, "evaluate", {"output": rate}, {"mean_class_accuracy": top1 / 2}, tuned)
        _record(client, experiment, "tag", {}, {"windows_per_second": 3.0}, tuned)
    return CompareConfig(experiment="motion", tracking=TrackingPlace(uri))


def _record(
    client: MlflowClient,
    experiment: str,
    command: str,
    params: dict[str, str],
    metrics: dict[str, float],
    links: dict[str, str],
) -> str:
    run_id = client.create_run(experiment, tags={"command": command, **links}, run_name=f"{command} run").info.run_id
    for key, value in params.items():
        client.log_param(run_id, key, value)
    for key, number in metrics.items():
        client.log_metric(run_id, key, number, step=1)
    client.set_terminated(run_id)
    return str(run_id)


def _text(renderable: object) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def test_only_differing_parameters_are_shown_and_the_best_run_is_marked(store: CompareConfig) -> None:
    groups = by_command(with_evaluations(find_runs(store)))
    assert differing_parameters(groups["evaluate"]) == {}
    runs = groups["finetune"]
    assert list(differing_parameters(runs)) == ["learning_rate"]
    best = best_run(runs, "")
    assert best is not None
    assert (best.metric, best.value, best.run.data.params["learning_rate"]) == ("validation_top1", 0.9, "4e-4")
    text = _text(command_table("finetune", runs, len(runs), ""))
    assert f"★ {best.run.info.run_id[:8]}" in text
    assert "8e-4" in text
    assert "seed" not in text
    assert "evaluate mean_class_accuracy" in text


def test_a_loss_ranks_no_runs_that_measure_something_else(store: CompareConfig) -> None:
    client = store.tracking.client()
    experiment = client.create_experiment("losses")
    figures = {"pixels": {"validation_loss": 0.6, "loss": 0.6}, "hog": {"validation_loss": 0.02, "loss": 0.02}}

    def recorded(**more: float) -> list[Run]:
        made = [
            _record(client, experiment, "pretrain", {"model_overrides.target": target}, {**known, **more}, {})
            for target, known in figures.items()
        ]
        return [client.get_run(run_id) for run_id in made]

    assert best_run(recorded(), "") is None
    assert best_run(recorded(), "validation_loss") is not None
    assert "validation_loss" in _text(command_table("pretrain", recorded(), 2, ""))
    runs = recorded()
    for pretrained, top1 in zip(runs, (0.9, 0.2), strict=True):
        pretrained.data.metrics["validation_knn_top1"] = top1
    best = best_run(runs, "")
    assert best is not None
    assert (best.metric, best.value) == ("validation_knn_top1", 0.9)


def test_the_tree_hangs_tagging_under_its_finetuning_under_its_pretraining(store: CompareConfig) -> None:
    lines = _text(link_tree(find_runs(store))).splitlines()
    depth = [
        (next(name for name in ("pretrain", "finetune", "evaluate", "tag", "which") if name in line), line)
        for line in lines
    ]
    assert [name for name, _ in depth] == ["which", "pretrain", *["finetune", "evaluate", "tag"] * 2]
    indents = [line.index(name) for name, line in depth]
    assert indents[1] < indents[2] < indents[3]
    assert indents[2] == indents[5]


def test_query_and_run_names_choose(store: CompareConfig) -> None:
    def config(query: str = "", runs: tuple[str, ...] = ()) -> CompareConfig:
        return CompareConfig(experiment="motion", tracking=store.tracking, query=query, runs=runs)

    assert len(find_runs(config("metrics.validation_top1 > 0.8"))) == 1
    (chosen,) = find_runs(config(runs=("pretrain run",)))
    assert find_runs(config(runs=(chosen.info.run_id[:10],)))[0].info.run_id == chosen.info.run_id
    for broken, message in (
        (config("metrics.top1 >"), "^query='metrics.top1 >': MLflow does not understand it"),
        (config("metrics.top1 > 2"), r"no run at sqlite:/\S+ matches"),
        (config(runs=("finetune run",)), "more than one"),
        (CompareConfig(experiment="motoin", tracking=store.tracking), "^experiment=motoin: .* did you mean motion"),
    ):
        with pytest.raises(UserError, match=message):
            find_runs(broken)


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("top1", [0.1, 0.9, 0.9], 1),
        ("loss", [0.1, float("nan"), 0.05], 2),
        ("learning_rate", [0.1, 0.2], None),
        ("top1", [0.5, None], None),
        ("top1", [0.5, 0.5], None),
    ],
)
def test_best_has_a_direction(metric: str, values: Sequence[float | None], best: int | None) -> None:
    assert best_index(metric, values) == best


@pytest.mark.parametrize("metric", ["held_out_topp1", "learning_rate"])
def test_a_metric_that_ranks_nothing_is_a_mistake(metric: str, store: CompareConfig) -> None:
    with pytest.raises(
        UserError, match=rf"^best_by={metric}: no run has such a metric .* use one of .*validation_top1"
    ):
        run(replace(store, best_by=metric))
    assert run(replace(store, best_by="loss"))["best finetune"].endswith("(loss 0.3)")


def test_a_server_that_is_not_there_is_no_mistake_in_the_query() -> None:
    place = TrackingPlace("http://me:hunter2@127.0.0.1:9")
    with pytest.raises(UserError, match=r"^tracking.uri=http://\S+127.0.0.1:9: does not answer"):
        find_runs(CompareConfig(query="metrics.top1 > 0", tracking=place))


def test_the_report_says_where_it_looked(store: CompareConfig, capsys: pytest.CaptureFixture[str]) -> None:
    report = run(store)
    assert report["tracking.uri"] == store.tracking.uri
    print_report("compare", {"tracking.uri": "http://me:hunter2@127.0.0.1:9"})
    assert "http://127.0.0.1:9" in capsys.readouterr().out
