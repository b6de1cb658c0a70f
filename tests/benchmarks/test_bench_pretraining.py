"""The benchmarks of pretraining in small: they run, count right, and go on where they were cut off."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from tests.benchmarks import bench_pretraining_pays as pays
from tests.benchmarks import motion_learning
from tests.benchmarks.motion_learning import Task, clips_of, pretrain, pretrain_config
from tests.benchmarks.pretraining_sweep import USUAL, VARIANTS, Variant, swept

TINY = Task(0.2, 16, 1, 8, 6, 2, frames=8, size=64,
            pretrain_keys=("model=mae_hiera_test_8x64", "global_batch=4", "micro_batch=4", "mask_ratio=0.75"),
            finetune_keys=("model=hiera_test_8x64", "new_blocks=1", "global_batch=4", "micro_batch=4"))  # fmt: skip


def test_gain_is_the_mean_over_seeds_against_the_better_way_from_scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {
        ("pretrained", 0): 0.5, ("pretrained", 1): 0.7,
        ("from scratch", 0): 0.2, ("from scratch", 1): 0.3,
        ("from scratch, without mixing", 0): 0.4, ("from scratch, without mixing", 1): 0.56,
    }  # fmt: skip
    monkeypatch.setattr(pays, "ProcessPoolExecutor", _InThisProcess)
    monkeypatch.setattr(pays, "draw_sets", lambda *_: None)
    monkeypatch.setattr(pays, "top1_of", lambda task, folder, way, seed: scores[way.name, seed])
    figures = pays.compared(TINY, (0, 1), tmp_path, 1)
    assert figures["pretrained"]["points"] == pytest.approx(60)
    assert figures["gain"]["over"] == "from scratch, without mixing"
    assert figures["gain"]["points"] == pytest.approx(12)
    assert figures["gain"]["spread"] == pytest.approx(np.std([10, 14], ddof=1))
    assert figures["gain"]["passed"]
    scores["pretrained", 1] = 0.6
    assert not pays.compared(TINY, (0, 1), tmp_path, 1)["gain"]["passed"]


class _InThisProcess:
    def __init__(self, *_: object) -> None:
        self.map = map

    def __enter__(self) -> _InThisProcess:
        return self

    def __exit__(self, *_: object) -> None:
        return


def test_pretraining_goes_on_where_it_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips, _ = clips_of(TINY, "unlabelled", TINY.unlabelled, 1, tmp_path)
    whole = pretrain(pretrain_config(TINY, 0), clips, tmp_path / "whole.safetensors")
    monkeypatch.setattr(motion_learning, "STEPS_BETWEEN_SAVES", 3)
    with pytest.raises(InterruptedError):
        pretrain(pretrain_config(TINY, 0), _Cut(clips, views=16), tmp_path / "cut.safetensors")  # type: ignore[arg-type]
    resumed = pretrain(pretrain_config(TINY, 0), clips, tmp_path / "cut.safetensors")
    assert (resumed["steps"], resumed["final_loss"]) == (6, whole["final_loss"])
    cut, uncut = (load_file(tmp_path / f"{name}.safetensors") for name in ("cut", "whole"))
    assert all(torch.equal(cut[name], uncut[name]) for name in uncut)


def test_equal_time_is_not_cut_off_at_the_number_of_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips, _ = clips_of(TINY, "unlabelled", TINY.unlabelled, 1, tmp_path)
    rates: list[float] = []
    monkeypatch.setattr(motion_learning, "set_learning_rate", lambda optimizer, rate: rates.append(rate))
    monkeypatch.setattr(motion_learning, "_Clock", _TenStepsASecond)
    figures = pretrain(pretrain_config(TINY, 0), clips, tmp_path / "timed.safetensors", seconds=1.0)
    assert figures["steps"] == 10 > TINY.pretrain_steps
    assert rates[-1] < max(rates) / 5


class _TenStepsASecond:
    """A clock that is asked twice before a step and moves on by itself."""

    def __init__(self, spent: float) -> None:
        self._asked = 0

    def seconds(self) -> float:
        self._asked += 1
        return (self._asked - 1) // 2 / 10


class _Cut:
    """Clips that end the process after some views."""

    def __init__(self, clips: np.ndarray, views: int) -> None:
        self.clips, self.shape, self.left = clips, clips.shape, views

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> np.ndarray:
        self.left -= 1
        if self.left < 0:
            raise InterruptedError
        return self.clips[index]


@pytest.mark.slow
@pytest.mark.ray
def test_a_sweep_is_children_of_one_run(tmp_path: Path) -> None:
    variants = (Variant(USUAL), Variant("no fusion", ("model_overrides.multi_scale_fusion=false",)),
                Variant("cross, equal time", ("model_overrides.decoder=cross",), equal_time=True))  # fmt: skip
    rows = swept(TINY, variants, (0,), tmp_path)
    assert list(rows) == [variant.name for variant in variants]
    assert rows["no fusion"]["steps"] == 6
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("pretraining sweep")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.data.tags["command"] == "sweep"]
    children = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.data.params["variant"] for run in children} == set(rows)
    again = swept(TINY, variants, (0,), tmp_path)
    assert again == rows
    assert len(client.search_runs([experiment.experiment_id])) == 4


def test_every_variant_is_a_configuration() -> None:
    assert len(VARIANTS) == 10
    for variant in VARIANTS:
        pretrain_config(pays.FULL, 0, *variant.keys)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_benchmark_runs_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pays, "FOLDER", tmp_path)
    figures = pays.run(quick=True)
    assert set(figures) == {*(way.name for way in pays.WAYS), "gain", "chance", "task"}
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    again = pays.run(quick=True)
    assert again.pop("kept").startswith("6 of 6 scores, the oldest of ")
    assert again == figures
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == kept
    assert json.loads(next(iter(kept.values())))["steps"] > 0
    points = [float(score) for way in pays.WAYS for score in figures[way.name]["seeds"].split(", ")]
    assert len(points) == 6
    assert all(0 <= score <= 100 for score in points)
