"""`--dry-run`: the figures by hand, nothing written, no Ray."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hiera_video.analysis.activation_memory import activation_bytes
from hiera_video.analysis.flops import complexity
from hiera_video.models.presets import create_model, model_config
from hiera_video.weights.checkpoint_files import save_model
from jobs.checkpoints.store import Checkpoint, write_checkpoint, write_journal
from jobs.core.config import load_config
from jobs.planning.dry_run import PlanConfig
from jobs.planning.memory import GIB, checkpoint_bytes, planned_sharding, trained_size, worker_memory
from jobs.pretrain import dry_run
from jobs.synthetic.motion_videos import render_motion_videos
from jobs.training.sharding.costs import kept_bytes, sent_bytes
from jobs.training.steps.finetune import Classification, FinetuneConfig
from jobs.training.steps.pretrain import PretrainConfig
from tests.support.small_set import small_prepared_set

KEYS = ["model=mae_hiera_test_8x64", "mask_ratio=0.75", "view.repeats=2",
        "global_batch=8", "micro_batch=2", "workers=2", "epochs=20", "schedule.warmup_epochs=4"]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_prepared_set(tmp_path_factory.mktemp("dry")).uri


def config(data: str, output: Path, *more: str) -> PretrainConfig:
    return load_config(PretrainConfig, "pretrain", [f"data={data}", f"output={output}", *KEYS, *more])


def test_length_and_speed(data: str, tmp_path: Path) -> None:
    figures = dry_run(config(data, tmp_path / "out"), PlanConfig(hours=0.5))
    assert (figures["clips"], figures["steps"], figures["warm-up steps"], figures["views"]) == (10, 25, 5, 200)
    assert figures["effective epochs (views / clips)"] == 20
    assert figures["passes over the data, each of view.repeats views a clip"] == 10
    assert (figures["videos a step, each of view.repeats views"], figures["peak learning rate"]) == (4, 8e-4 * 4 / 512)
    assert figures["views a second needed to end in 0.5 hours"] == pytest.approx(200 / 1800)
    assert figures["GiB of host memory for checkpoints, first worker"] == 2 * figures["GiB a checkpoint"]
    assert not (tmp_path / "out").exists()


def test_a_measured_step_tells_how_long_it_takes(data: str, tmp_path: Path) -> None:
    asked = config(data, tmp_path)
    assert dry_run(asked, PlanConfig(step_seconds=2))["hours at that speed"] == pytest.approx(25 * 2 / 3600)
    write_checkpoint(str(tmp_path), Checkpoint(5, 40, {}, {}))
    write_journal(
        str(tmp_path), 5, 0, "".join(f'{{"step": {step}, "clips_per_second": 4.0}}\n' for step in range(1, 6))
    )
    figures = dry_run(asked, PlanConfig())
    assert (figures["steps done already"], figures["seconds a step, measured"]) == (5, 2.0)
    assert figures["hours at that speed"] == pytest.approx(20 * 2 / 3600)


def test_memory_by_stage() -> None:
    plan = load_config(PretrainConfig, "pretrain", ["k400_large", "data=d", "output=o", "workers=8"])
    parameters = complexity("mae_hiera_large_16x224").parameters
    sharding = planned_sharding(plan, trained_size(plan, model_config("mae_hiera_large_16x224")))
    told = worker_memory(plan, sharding, activation_bytes(model_config("mae_hiera_large_16x224")))
    parts = {
        stage: {name: float(size) for name, size in re.findall(r"(\w+) (\d+\.\d+)", text)}
        for stage, text in told.items()
    }
    weights = 4 * parameters / GIB
    assert parts[0]["optimizer"] == pytest.approx(2 * weights, abs=0.01)
    assert parts[1]["optimizer"] == pytest.approx(3 * weights / 8, abs=0.01)
    assert parts[2]["gradients"] == pytest.approx(weights / 8, abs=0.01)
    assert parts[3]["weights"] == pytest.approx(weights / 8, abs=0.01)
    totals = [float(text.split()[0]) for text in told.values()]
    assert totals == sorted(totals, reverse=True)
    assert checkpoint_bytes(sharding) == 12 * parameters


def test_frozen_parameters_have_no_gradients_and_no_optimizer_state() -> None:
    """Two workers, AdamW, float32: a weight that learns takes 4 bytes, its gradient 4, its state 8."""
    keys = ["data=d", "output=o", "steps=1", "model=hiera_test_8x64", "global_batch=8", "micro_batch=2", "workers=2"]
    plan = load_config(FinetuneConfig, "finetune", [*keys, "view.repeats=1", "init=w", "learn=head", "precision=fp32"])
    model = Classification(plan, num_classes=4).model
    everything, head = (sum(p.numel() for p in part.parameters()) for part in (model, model.head))
    sharding = planned_sharding(plan, trained_size(plan, plan.model_config(4)))
    kept = kept_bytes(0, sharding)
    assert (kept["weights"], kept["gradients"], kept["optimizer"]) == (4 * everything, 4 * head, 8 * head)
    assert kept_bytes(3, sharding)["weights"] == 2 * everything
    assert sent_bytes(0, sharding) == 4 * head  # an all-reduce sends 2 (N - 1) / N of the gradients
    # Two micro-batches, half of what is gathered and scattered: all weights once, and the gradients.
    assert sent_bytes(3, sharding) == 4 * (everything + head)
    assert checkpoint_bytes(sharding) == 4 * everything + 8 * head


@pytest.mark.ray  # not for Ray, which must not start, but for the seconds that a process takes
@pytest.mark.parametrize(
    ("command", "keys"),
    [
        ("finetune", ["data={data}", "plan.hours=3", "model=hiera_test_8x64", "steps=3", "global_batch=8"]),
        ("tag", ["init={classifier}", "source={source}"]),
    ],
)
def test_every_program_has_one_and_it_writes_nothing(command: str, keys: list[str], data: str, tmp_path: Path) -> None:
    classifier, source = tmp_path / "classifier.safetensors", tmp_path / "videos"
    save_model(classifier, create_model("hiera_test_8x64", num_classes=2), {"classes": json.dumps(["a", "b"])})
    source.mkdir()
    render_motion_videos(source, 2, seed=1, size=64, num_frames=8)
    before = sorted(tmp_path.rglob("*"))
    given = [key.format(data=data, classifier=classifier, source=source) for key in keys]
    arguments = [sys.executable, "-m", f"jobs.{command}", "--dry-run", f"output={tmp_path / 'out'}", *given]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "nothing is written" in done.stdout
    assert sorted(tmp_path.rglob("*")) == before
