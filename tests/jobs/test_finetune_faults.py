"""Fine-tuning with everything that is drawn, in real workers: cut off and resumed, by another number of workers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hiera_video.models.presets import create_model
from hiera_video.weights.checkpoint_files import load_model, save_model
from jobs import finetune
from jobs.core.config import load_config
from jobs.training.steps.finetune import FinetuneConfig
from tests.jobs.training.test_driver import cut_off_at, losses
from tests.support.golden_losses import TINY, write_tiny_set

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(900)]

KEYS = [*TINY, "model=hiera_test_8x64", "epochs=null", "steps=6", "precision=fp32", "workers=2", "tracking.uri=none",
        "optimizer.learning_rate=0.1", "schedule.warmup_epochs=0", "validation.clips=0"]  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A prepared set, and weights to start from."""
    folder = tmp_path_factory.mktemp("finetuning")
    torch.manual_seed(0)
    save_model(folder / "init.safetensors", create_model("hiera_test_8x64"))
    return write_tiny_set(folder), folder / "init.safetensors"


def trained(places: tuple[str, Path], output: Path, *more: str) -> list[float]:
    keys = [f"data={places[0]}", f"init={places[1]}", f"output={output}", *KEYS, *more]
    finetune.run(load_config(FinetuneConfig, "finetune", ["k400_base", *keys]))
    return losses(output)


def test_the_recipe_resumes_bit_equal_and_one_worker_draws_what_two_draw(
    places: tuple[str, Path], tmp_path: Path
) -> None:
    whole = trained(places, tmp_path / "whole")
    assert len(set(whole)) == len(whole) == 6
    assert trained(places, cut_off_at(tmp_path / "whole", 2, tmp_path / "resumed")) == whole
    assert trained(places, tmp_path / "alone", "workers=1", "zero_stage=0") == pytest.approx(whole, rel=1e-5)
    assert trained(places, tmp_path / "plain", "augment.rand_augment=", "mix.mixup=0", "mix.cutmix=0") != whole


@pytest.mark.parametrize("stage", [1, 3])
def test_a_linear_probe_keeps_the_encoder_and_resumes_bit_equal(
    places: tuple[str, Path], tmp_path: Path, stage: int
) -> None:
    keys = ("learn=head", f"zero_stage={stage}")
    whole = trained(places, tmp_path / "whole", *keys)
    resumed = cut_off_at(tmp_path / "whole", 2, tmp_path / "resumed")
    assert trained(places, resumed, *keys) == whole
    before, after = (load_model(path).state_dict() for path in (places[1], resumed / "model.safetensors"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias"}
    assert len(json.loads((resumed / "metrics.jsonl").read_text().splitlines()[-1])["sample_ids"]) == 4
