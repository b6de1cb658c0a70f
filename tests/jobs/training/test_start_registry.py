"""A start from `init=models:/NAME@ALIAS`: the run keeps the copy that it began with. No Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from jobs.core.cli import replace
from jobs.core.config import load_config
from jobs.core.errors import UserError
from jobs.finetune import dry_run
from jobs.runs.tracking import TrackingConfig
from jobs.training.dry_run import PlanConfig
from jobs.training.finetune_step import FinetuneConfig
from jobs.training.start import Start, begin
from pipeline.shards.reader import PreparedSet
from tests.support.registry import NAME, motion_registry, stored
from tests.support.small_set import small_prepared_set

SMALL = ["model=hiera_test_8x64", "steps=3"]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    return motion_registry(tmp_path_factory.mktemp("registry"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    return small_prepared_set(tmp_path_factory.mktemp("set"))


@pytest.fixture
def asked(registry: MlflowClient, prepared: PreparedSet, tmp_path: Path) -> FinetuneConfig:
    registry.set_registered_model_alias("motion", "best", "1")
    keys = [f"init={NAME}@best", f"data={prepared.uri}", f"output={tmp_path / 'run'}", *SMALL]
    return load_config(FinetuneConfig, "finetune", [*keys, f"tracking.uri={registry.tracking_uri}"])


def begun(config: FinetuneConfig) -> Start[FinetuneConfig]:
    with begin("finetune", config, labelled=True) as start:
        return start


def content(start: Start[Any]) -> bytes:
    assert start.init is not None
    return Path(start.init).read_bytes()


def test_a_run_keeps_its_copy_when_the_alias_moves(
    registry: MlflowClient, asked: FinetuneConfig, tmp_path: Path
) -> None:
    first = begun(asked)
    assert first.config.init == f"{NAME}@best"
    assert first.worker_config.init == first.init
    assert str(first.init).startswith(str(tmp_path / "run" / "initial"))
    assert content(first) == stored(registry.tracking_uri, 1)
    assert first.links == {"pretrain_run_id": "p1", "finetune_run_id": "f1"}
    registry.set_registered_model_alias("motion", "best", "2")
    dead = replace(asked, tracking=TrackingConfig("http://127.0.0.1:9"))
    again = begun(dead)
    assert (again.init, again.links, again.new_head) == (first.init, first.links, first.new_head)
    assert content(begun(replace(asked, output=str(tmp_path / "new")))) == stored(registry.tracking_uri, 2)
    with pytest.raises(UserError, match="another configuration"):
        begun(replace(asked, seed=1))
    assert len(list((tmp_path / "run" / "initial").iterdir())) == 1


def test_a_run_whose_output_was_moved_finds_its_copy(
    registry: MlflowClient, asked: FinetuneConfig, tmp_path: Path
) -> None:
    begun(asked)
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = begun(replace(asked, output=str(tmp_path / "moved")))
    assert content(moved) == stored(registry.tracking_uri, 1)


def test_a_first_start_that_loses_the_race_takes_the_winners_weights(
    registry: MlflowClient, asked: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The alias moves between two starts that have both found the output free."""
    winner = begun(asked)
    registry.set_registered_model_alias("motion", "best", "2")
    monkeypatch.setattr("jobs.training.start.read_claim", lambda *_: None)
    loser = begun(asked)
    assert loser.claim is not None
    assert winner.claim is not None
    assert loser.claim.run_key == winner.claim.run_key
    assert loser.init == winner.init


def test_a_dry_run_reads_it_and_writes_nothing(asked: FinetuneConfig, tmp_path: Path) -> None:
    assert dry_run(asked, PlanConfig())["steps"] == 3
    assert not (tmp_path / "run").exists()
