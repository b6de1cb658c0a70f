"""Training end to end with real workers: the order of samples, resume, another number of workers, fine-tuning."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hiera_video.weights.checkpoint_files import load_model, read_metadata
from jobs import finetune, pretrain
from jobs.checkpoints.store import complete_steps
from jobs.core.config import load_config
from jobs.core.errors import TrainingStoppedError, UserError
from jobs.runs.tracking import tracking_client
from jobs.runs.tracking_config import TrackingConfig
from jobs.training.start import preview
from jobs.training.steps.finetune import FinetuneConfig
from pipeline.shards.reader import open_prepared
from tests.support.events import events
from tests.support.golden_losses import GLOBAL_BATCH, GOLDEN, STEPS, TINY, pretrain_config, write_tiny_set
from tests.support.planned_runs import planned_and_taken
from tests.support.runs import pretrain_keys, run

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_set(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def pretrained(prepared: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("pretrained") / "run"
    pretrain.run(pretrain_config(prepared, output))
    return output


def journal(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def losses(output: Path) -> list[float]:
    return [line["loss"] for line in journal(output)]


def cut_off_at(output: Path, step: int, copy: Path) -> Path:
    """The state of a run that died after the checkpoint of ``step`` was complete."""
    shutil.copytree(output, copy)
    for later in (found for found in complete_steps(str(copy)) if found > step):
        shutil.rmtree(copy / "checkpoints" / f"step-{later:08d}")
    for done in ("metrics.jsonl", "model.safetensors"):
        (copy / done).unlink()
    return copy


def test_every_view_once_per_epoch_and_no_tail_dropped(pretrained: Path, prepared: str) -> None:
    lines = journal(pretrained)
    samples = [sample for line in lines for sample in line["sample_ids"]]
    per_epoch = open_prepared(prepared).num_clips("train") * 2  # view.repeats
    assert [line["position"] for line in lines] == [GLOBAL_BATCH * (step + 1) for step in range(STEPS)]
    for first in range(0, len(samples), per_epoch):
        epoch = samples[first : first + per_epoch]
        assert len(set(epoch)) == len(epoch)


def test_a_plan_from_its_journal_is_within_a_quarter_of_the_run(pretrained: Path, tmp_path: Path) -> None:
    """From the whole of it: with so few steps the first ones would decide."""
    plan, taken = planned_and_taken(pretrained, tmp_path, every=1)
    assert plan == pytest.approx(taken, rel=0.25)


def test_the_losses_are_the_golden_ones(pretrained: Path) -> None:
    assert losses(pretrained) == pytest.approx(json.loads(GOLDEN.read_text()), rel=1e-4)


def test_outputs_of_a_run(pretrained: Path) -> None:
    assert read_metadata(pretrained / "model.safetensors")["command"] == "pretrain"
    assert load_model(pretrained / "model.safetensors").config.input_size == (8, 64, 64)
    for name in ("curves.png", "reconstructions.png", "config.yaml", "run.json"):
        assert (pretrained / name).stat().st_size > 0
    client = tracking_client(TrackingConfig(), str(pretrained))
    run_id = read_metadata(pretrained / "model.safetensors")["run_id"]
    history = client.get_metric_history(run_id, "loss")
    assert sorted((entry.step, entry.value) for entry in history) == list(enumerate(losses(pretrained), start=1))
    assert {file.path for file in client.list_artifacts(run_id)} >= {"curves.png", "reconstructions.png"}
    assert client.get_run(run_id).data.tags["data_digest"]


def test_a_resumed_run_is_bit_equal(pretrained: Path, prepared: str, tmp_path: Path) -> None:
    resumed = cut_off_at(pretrained, 2, tmp_path / "resumed")
    pretrain.run(pretrain_config(prepared, resumed))
    assert losses(resumed) == losses(pretrained)
    assert [line["sample_ids"] for line in journal(resumed)] == [line["sample_ids"] for line in journal(pretrained)]
    ours, theirs = (load_model(run / "model.safetensors").state_dict() for run in (resumed, pretrained))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_one_worker_draws_what_two_draw(pretrained: Path, prepared: str, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    pretrain.run(pretrain_config(prepared, alone, "workers=1", "zero_stage=0"))
    assert [line["sample_ids"] for line in journal(alone)] == [line["sample_ids"] for line in journal(pretrained)]
    assert losses(alone) == pytest.approx(losses(pretrained), rel=1e-5)


@pytest.mark.slow  # three more runs than fit into `make test`
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_every_zero_stage_takes_the_same_steps(stage: int, pretrained: Path, prepared: str, tmp_path: Path) -> None:
    """On two workers, as `pretrained` with stage 1."""
    output = tmp_path / f"stage-{stage}"
    pretrain.run(pretrain_config(prepared, output, f"zero_stage={stage}"))
    assert [line["sample_ids"] for line in journal(output)] == [line["sample_ids"] for line in journal(pretrained)]
    assert losses(output) == pytest.approx(losses(pretrained), rel=1e-5)


def test_the_same_output_with_another_rate_is_refused(pretrained: Path, prepared: str) -> None:
    with pytest.raises(UserError, match=r"learning_rate: existing 0\.0256, now 0\.5"):
        pretrain.run(pretrain_config(prepared, pretrained, "optimizer.learning_rate=0.5"))


def test_finetuning_starts_from_the_encoder(
    pretrained: Path, prepared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # places may be relative to a folder that the workers do not share
    places = [f"data={os.path.relpath(prepared)}", f"init={os.path.relpath(pretrained)}"]
    keys = ["demo", *places, "model=hiera_test_8x64", *TINY, "output=good"]
    report = finetune.run(load_config(FinetuneConfig, "finetune", keys))
    metadata = read_metadata(tmp_path / "good" / "model.safetensors")
    assert metadata["pretrain_run_id"] == read_metadata(pretrained / "model.safetensors")["run_id"]
    assert len(json.loads(metadata["classes"])) == report["classes"] == 8


@pytest.mark.slow
def test_a_wild_loss_stops(pretrained: Path, prepared: str, tmp_path: Path) -> None:
    wild = ["optimizer.learning_rate=1e30", "optimizer.clip_gradient_norm=0", "schedule.warmup_epochs=0"]
    places = [f"data={prepared}", f"init={pretrained}", f"output={tmp_path / 'bad'}"]
    bad = load_config(FinetuneConfig, "finetune", ["demo", *places, "model=hiera_test_8x64", *TINY, *wild])
    with pytest.raises(TrainingStoppedError, match=r"not finite; samples of this batch: -?\d+#0, "):
        finetune.run(bad)


def test_mistakes_are_told_before_any_worker_starts(prepared: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"workers=3: must divide global_batch / micro_batch = 2; use one of 1, 2"):
        pretrain_config(prepared, tmp_path, "workers=3")
    with pytest.raises(UserError, match="no such preset"):
        pretrain_config(prepared, tmp_path, "model=mae_hiera_bsae_16x224")
    with pytest.raises(UserError, match=r"model_overrides.input_size=224x192: training takes square views"):
        pretrain_config(prepared, tmp_path, "model=mae_hiera_base_224", "model_overrides.input_size=[224,192]")
    config = pretrain_config(prepared, tmp_path, "model=mae_hiera_test_96", "mask_ratio=0.6")
    with pytest.raises(UserError, match=r"holds videos, and the model takes images \(input_size=96x96\)"):
        preview("pretrain", config)


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("form", ["plain", "torch"])
@pytest.mark.parametrize("name", ["weights.pth", "model.safetensors"])
def test_a_pickle_planted_as_weights_is_refused_and_runs_nothing(
    prepared: str, tmp_path: Path, name: str, form: str
) -> None:
    weights, mark = tmp_path / name, tmp_path / "mark"
    content = {"model_state": {"w": torch.zeros(1)}, "planted": Planted(mark)}
    if form == "plain":
        weights.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, weights)
    with pytest.raises(UserError, match=name):
        pretrain.run(pretrain_config(prepared, tmp_path / "run", f"init={weights}"))
    assert not mark.exists()
    with weights.open("rb") as file:  # the planted pickle does work
        torch.load(file, weights_only=False) if form == "torch" else pickle.load(file)  # noqa: S301 our own
    assert mark.exists()


@pytest.mark.slow
def test_every_line_of_a_run_is_an_event(prepared: str, tmp_path: Path) -> None:
    """Of the whole command, with Ray, DeepSpeed and MLflow in it."""
    keys = pretrain_keys(Path(prepared), tmp_path / "run", "steps=4", "workers=1", "log=json")
    done = run("jobs.pretrain", *keys)
    assert done.returncode == 0, done.stderr
    # Ray's compiled part writes past Python: "[2026-12-01 06:14:52,614 I 6054 6054] logging.cc:303: ...".
    own = [line for line in done.stderr.splitlines() if not re.match(r"\[\d{4}-\d\d-\d\d ", line)]
    printed = events("\n".join(own))
    assert [line["event"] for line in printed][:1] == ["started"]
    assert (printed[-1]["event"], printed[-1]["fields"]["exit_code"]) == ("ended", 0)
    steps = [line for line in printed if line["event"] == "step"]
    assert [line["step"] for line in steps][-1] == 4
    run_key = json.loads((tmp_path / "run" / "run.json").read_text())["run_key"]
    assert {line["run_key"] for line in steps} == {run_key}
    assert steps[-1]["fields"]["loss"] == losses(tmp_path / "run")[-1]
    (report, *_) = events(done.stdout)
    assert (report["event"], report["fields"]["steps"]) == ("report", 4)
