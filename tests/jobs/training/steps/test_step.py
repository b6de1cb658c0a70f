"""Every phase forward and backward on a device, by fake tensors: nothing is mixed with the host, nothing waits."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from _pytest.mark import ParameterSet

from hiera_video.inference import Probabilities
from hiera_video.models.hiera import Hiera
from hiera_video.models.presets import create_model
from hiera_video.optimization import build_optimizer
from jobs.core.config import load_config
from jobs.training.micro_batch import MicroBatch
from jobs.training.steps.finetune import Classification, FinetuneConfig
from jobs.training.steps.pretrain import MaskedAutoencoding, PretrainConfig
from jobs.training.steps.step import TrainStep
from tests.support.fake_cuda import CUDA, STAND_IN, FakeCuda, WaitsForDeviceError, autocast_for_cuda

VIEWS, CLASSES = 4, 8
PRETRAIN = {
    "video": ["k400_base", "model=mae_hiera_test_8x64", "mask_ratio=0.75"],
    "float32": ["k400_base", "model=mae_hiera_test_8x64", "mask_ratio=0.75", "precision=fp32"],
    "recomputed": ["k400_large", "model=mae_hiera_test_8x64", "mask_ratio=0.75", "activation_checkpointing=true"],
    "images": ["in1k_base", "model=mae_hiera_test_96"],
    "subset decoder, pixels": ["k400_base", "model=mae_hiera_test_8x64", "mask_ratio=0.75",
                               "model_overrides.decoder=subset", "model_overrides.target=pixels"],
    "cross decoder": ["k400_base", "model=mae_hiera_test_8x64", "mask_ratio=0.75", "model_overrides.decoder=cross"],
    "gradients": ["k400_base", "model=mae_hiera_test_8x64", "mask_ratio=0.75", "model_overrides.target=hog"],
}  # fmt: skip
FINETUNE = {
    "video": ["k400_base", "model=hiera_test_8x64"],
    "float32": ["k400_base", "model=hiera_test_8x64", "precision=fp32"],
    "recomputed": ["k400_huge", "model=hiera_test_8x64", "activation_checkpointing=true"],
    "SGD": ["ssv2_base", "model=hiera_test_8x64"],
    "images": ["in1k_base", "model=hiera_test_96"],
    "every augmentation": ["k400_base", "model=hiera_test_8x64", "augment.rand_augment=rand-m7-n20-p1-inc1",
                           "augment.random_erasing=1"],
    "mixup": ["k400_base", "model=hiera_test_8x64", "mix.cutmix=0"],
    "cutmix": ["k400_base", "model=hiera_test_8x64", "mix.mixup=0"],
    "dropout": ["k400_base", "model=hiera_test_8x64", "model_overrides.head_dropout=0.5"],
    "head alone": ["k400_base", "model=hiera_test_8x64", "learn=head", "new_blocks=0"],
}  # fmt: skip
# Half a minute of fake tensors for two of them; the others run with the slow suite.
EVERY_TIME = ("video", "images", "SGD")
COMMON = ["data=d", "output=o", f"global_batch={VIEWS}", f"micro_batch={VIEWS}", "workers=1", "view.repeats=1"]


def mostly_slow(variants: Iterable[str]) -> list[ParameterSet]:
    """The variants, those that need not run every time marked as slow."""
    return [pytest.param(name, marks=[] if name in EVERY_TIME else pytest.mark.slow) for name in variants]


@pytest.mark.parametrize("name", PRETRAIN)
def test_pretraining_never_waits_for_cuda(name: str) -> None:
    forward_on_cuda(MaskedAutoencoding, pretrain_config(name))


@pytest.mark.parametrize("name", FINETUNE)
def test_finetuning_never_waits_for_cuda(name: str) -> None:
    forward_on_cuda(classification, finetune_config(name))


@pytest.mark.parametrize("name", mostly_slow(PRETRAIN))
def test_the_backward_pass_of_pretraining_never_waits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forward_and_backward(MaskedAutoencoding, pretrain_config(name), monkeypatch)


@pytest.mark.parametrize("name", mostly_slow(FINETUNE))
def test_the_backward_pass_of_finetuning_never_waits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forward_and_backward(classification, finetune_config(name), monkeypatch)


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("name", ["hiera_test_8x64", "hiera_test_96"])
def test_evaluation_never_waits_for_cuda(name: str, precision: torch.dtype | None) -> None:
    with autocast_for_cuda(), FakeCuda() as cuda, torch.no_grad():
        model = create_model(name)
        assert isinstance(model, Hiera)
        scores = cuda.place(Probabilities(model.eval(), precision))
        frames = cuda.tensor(*views_of(2, model.config.input_size), dtype=torch.uint8)
        with cuda.no_waits():
            assert scores(frames).device == CUDA


@pytest.mark.parametrize("device", [CUDA, STAND_IN], ids=str)
@pytest.mark.parametrize("mistake", ["item", "numbers", "copy", "mask", "host"])
def test_a_wait_and_a_mixture_are_seen(mistake: str, device: torch.device) -> None:
    """What the tests above must not let pass."""
    expected = RuntimeError if mistake == "host" else WaitsForDeviceError
    with FakeCuda(device) as fake:
        tensor = fake.tensor(3)
        blunders = {
            "item": lambda: float(tensor.sum()),
            "numbers": lambda: torch.tensor([1.0, 2.0], device=device),
            "copy": lambda: torch.ones(3).to(device),
            "mask": lambda: tensor[tensor > 0],
            "host": lambda: tensor + torch.ones(3),
        }
        with fake.no_waits(), pytest.raises(expected):
            blunders[mistake]()


def pretrain_config(name: str) -> PretrainConfig:
    return load_config(PretrainConfig, "pretrain", [*PRETRAIN[name], *COMMON])


def finetune_config(name: str) -> FinetuneConfig:
    return load_config(FinetuneConfig, "finetune", [*FINETUNE[name], *COMMON, "init=i"])


def classification(config: FinetuneConfig) -> Classification:
    return Classification(config, CLASSES)


def forward_on_cuda(build: Any, config: Any) -> None:
    """With autocast, as it is on CUDA."""
    with autocast_for_cuda(), FakeCuda() as cuda:
        step = cuda.place(build(config))
        with cuda.no_waits():
            assert step(batch(cuda, config, 0)).device == CUDA


def forward_and_backward(build: Any, config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two micro-batches and a step of the optimizer, in float32: the stand-in has no autocast."""
    monkeypatch.setattr(TrainStep, "_autocast", lambda *_: nullcontext())
    monkeypatch.setattr(torch, STAND_IN.type, SimpleNamespace(), raising=False)  # checkpointing looks for its module
    with FakeCuda(STAND_IN) as fake:
        step = fake.place(build(config))
        optimizer = build_optimizer(step.model, config.optimizer)
        with fake.no_waits():
            for index in range(2):
                step(batch(fake, config, index)).backward()
            optimizer.step()
        learning = [parameter for parameter in step.parameters() if parameter.requires_grad]
        assert all(parameter.grad is not None and parameter.grad.device == STAND_IN for parameter in learning)


def views_of(count: int, input_size: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of so many views, an image being one frame."""
    return (count, *(1, *input_size)[-3:], 3)


def batch(fake: FakeCuda, config: Any, index: int) -> MicroBatch:
    return MicroBatch(
        frames=fake.tensor(*views_of(VIEWS, config.input_size), dtype=torch.uint8),
        labels=fake.tensor(VIEWS, dtype=torch.int64),
        sample_ids=[f"{view}#0" for view in range(VIEWS)],
        epochs=[0] * VIEWS,
        position=0,
        seed=5,
        step=0,
        index=index,
    )
