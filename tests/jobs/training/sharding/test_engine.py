"""DeepSpeed's settings, and that its stages take the same steps with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from hiera_video.optimization import build_optimizer, set_learning_rate
from jobs.core.config import load_config
from jobs.training.micro_batch import MicroBatch
from jobs.training.sharding.engine import deepspeed_settings, gather_as_bf16, own_clip_norm, start_engine
from jobs.training.steps.pretrain import MaskedAutoencoding, PretrainConfig
from tests.support.ranks import on_ranks

MICRO_BATCHES, STEPS = 2, 3  # micro-batches of a step on each of two ranks
# All of Huge's 48 blocks at a thirty-second of its width, over a small input.
NARROW_HUGE = ["model=mae_hiera_huge_16x224", "model_overrides.embed_dim=8", "model_overrides.num_heads=1",
               "model_overrides.input_size=[8,64,64]", "model_overrides.decoder_embed_dim=16",
               "model_overrides.decoder_depth=2", "model_overrides.decoder_num_heads=2", "mask_ratio=0.75",
               "optimizer.learning_rate=1e-2", "global_batch=4", "micro_batch=1", "view.repeats=1"]  # fmt: skip


def pretrain_config(*more: str) -> PretrainConfig:
    keys = ["data=d", "output=o", "steps=3", "precision=fp32", *NARROW_HUGE, *more]
    return load_config(PretrainConfig, "pretrain", keys)


def micro_batch(config: Any, number: int) -> MicroBatch:
    size = (1, *config.input_size, 3)
    generator = torch.Generator().manual_seed(number)
    return MicroBatch(
        frames=torch.randint(0, 256, size, dtype=torch.uint8, generator=generator),
        labels=torch.tensor([number % 3]),
        sample_ids=[f"{number}#0"],
        epochs=[0],
        position=number,
        seed=0,
        step=number,
        index=0,
    )


def train(config: Any, output: str, steps: int = STEPS) -> None:
    """A few steps of this rank; the first one writes the losses of all."""
    torch.manual_seed(0)
    step = MaskedAutoencoding(config)
    if config.zero_stage == 3 and config.precision == "bf16":
        gather_as_bf16(step.model)
    settings = deepspeed_settings(config, dist.get_world_size(), MICRO_BATCHES)
    engine = start_engine(step, build_optimizer(step.model, config.optimizer), settings, own_clip_norm(config))
    losses = torch.zeros(steps, dtype=torch.float64)
    for number in range(steps):
        set_learning_rate(engine.optimizer, config.optimizer.learning_rate)
        for turn in range(MICRO_BATCHES):
            loss = engine(
                micro_batch(config, (number * MICRO_BATCHES + turn) * dist.get_world_size() + dist.get_rank())
            )
            engine.backward(loss)
            engine.step()
            losses[number] += loss.detach() / MICRO_BATCHES
    dist.all_reduce(losses)
    if dist.get_rank() == 0:
        torch.save(losses / dist.get_world_size(), output)


def losses_of(config: Any, output: Path) -> torch.Tensor:
    on_ranks(2, train, config, str(output))
    losses: torch.Tensor = torch.load(output, weights_only=True)
    return losses


def test_what_deepspeed_is_told() -> None:
    """By itself it would reduce at the end, in float32, through 2 GB of buffers, and wait for the device."""
    settings = deepspeed_settings(pretrain_config("precision=bf16", "zero_stage=1"), workers=2, micro_batches=2)
    assert settings["communication_data_type"] == "bf16"
    assert settings["zero_optimization"]["overlap_comm"]
    assert settings["zero_optimization"]["reduce_bucket_size"] * 4 <= 2**26
    assert not settings["timers"]["throughput"]["enabled"]
    assert settings["gradient_accumulation_steps"] == 2


def test_alone_nothing_is_sent_and_nothing_rounded() -> None:
    settings = deepspeed_settings(pretrain_config("precision=bf16"), workers=1, micro_batches=4)
    assert settings["communication_data_type"] == "fp32"
    assert not settings["zero_optimization"]["overlap_comm"]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_gradients_are_clipped_once(stage: int) -> None:
    config = pretrain_config(f"zero_stage={stage}", "optimizer.clip_gradient_norm=0.5")
    deepspeed = deepspeed_settings(config, workers=2, micro_batches=2)
    assert {deepspeed["gradient_clipping"], own_clip_norm(config)} == {0.0, 0.5}
    assert deepspeed["zero_optimization"].get("compute_grad_norm", True) is (stage in (0, 3))


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_huge_trains_with_zero_3_and_recomputed_activations_as_with_zero_1(tmp_path: Path) -> None:
    """48 blocks on two ranks: gathered for the forward pass, and again for the recomputation in the backward pass."""
    stage_1 = losses_of(pretrain_config("zero_stage=1"), tmp_path / "1")
    stage_3 = losses_of(pretrain_config("zero_stage=3", "activation_checkpointing=true"), tmp_path / "3")
    assert stage_1[-1] < stage_1[0]
    torch.testing.assert_close(stage_3, stage_1, rtol=1e-6, atol=0)
