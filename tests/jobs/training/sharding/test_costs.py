"""The formulas of what ZeRO's stages keep and send, against DeepSpeed itself on ranks that do not exist."""

from __future__ import annotations

import gc
import itertools
import os
import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hiera_video.optimization import build_optimizer
from jobs.core.config import load_config
from jobs.training.micro_batch import MicroBatch
from jobs.training.sharding.costs import STAGES, Sharding, kept_bytes, sent_bytes, weights_of_products
from jobs.training.sharding.engine import deepspeed_settings, gather_as_bf16, own_clip_norm, start_engine
from jobs.training.steps.pretrain import MaskedAutoencoding, PretrainConfig

pytestmark = pytest.mark.ray  # DeepSpeed takes seconds to start

PAGE = Path(__file__).resolve().parents[4] / "docs" / "training.md"
WORKERS, MICRO_BATCHES = 4, 3
BUCKET, LIVE = 2**15, 2**16
KEYS = ["data=d", "output=o", "steps=1", "model=mae_hiera_test_8x64", "model_overrides.embed_dim=24",
        "model_overrides.decoder_embed_dim=32", "mask_ratio=0.75", "global_batch=12", "micro_batch=1",
        "view.repeats=1", "optimizer.clip_gradient_norm=1.0"]  # fmt: skip
# Bytes that each collective operation sends from a worker, for a byte of its largest tensor, times (N - 1) / N.
SHARES = {"allreduce_": 2, "_allgather_base_": 1, "allgather_into_tensor_coalesced_": 1, "allgather_": 1,
          "_reduce_scatter_base_": 1, "reduce_scatter_tensor_coalesced_": 1, "broadcast_": 1, "barrier": 0}  # fmt: skip


CASES = list(itertools.product(STAGES, ["fp32", "bf16"]))
EVERY_TIME = [(1, "bf16"), (3, "bf16")]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("stage", "precision"),
    [pytest.param(*case, marks=[] if case in EVERY_TIME else pytest.mark.slow) for case in CASES],
)
def test_formulas_are_what_deepspeed_does(stage: int, precision: str) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        sharding, kept, sent = process.submit(measured, stage, precision).result()
    assert sent == pytest.approx(sent_bytes(stage, sharding), rel=0.02)
    assert kept == pytest.approx(sum(kept_bytes(stage, sharding).values()), rel=0.05)


@pytest.mark.parametrize("stage", STAGES)
def test_the_page_has_these_figures(stage: int) -> None:
    """Huge on eight workers, as the page says."""
    huge = Sharding(672_000_000, workers=8, micro_batches=4, moments=2, wire_bytes=2, in_products=672_000_000)
    row = re.search(rf"^\| {stage} \|.*\| ([\d.]+) GB \| ([\d.]+) GB \|$", PAGE.read_text(), re.MULTILINE)
    assert row is not None
    kept, sent = (float(figure) * 1e9 for figure in row.groups())
    assert kept == pytest.approx(sum(kept_bytes(stage, huge).values()), abs=5e6)
    assert sent == pytest.approx(sent_bytes(stage, huge), abs=5e6)


def measured(stage: int, precision: str) -> tuple[Sharding, int, float]:
    """What is sharded, bytes kept between micro-batches, and bytes sent in a step, by rank 0 of four."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(WORKERS)}
    torch.set_num_threads(1)
    dist.init_process_group("fake", rank=0, world_size=WORKERS, store=FakeStore())
    config = load_config(PretrainConfig, "pretrain", [*KEYS, f"zero_stage={stage}", f"precision={precision}"])
    batch = _batch(config)
    before = _bytes_of_tensors(None)
    step = MaskedAutoencoding(config)
    sharding = Sharding(
        parameters=sum(parameter.numel() for parameter in step.parameters()),
        workers=WORKERS,
        micro_batches=MICRO_BATCHES,
        moments=2,
        wire_bytes=2 if precision == "bf16" else 4,
        in_products=sum(parameter.numel() for parameter in weights_of_products(step)),
        bucket_elements=BUCKET,
        live_elements=LIVE,
    )
    tables = sum(buffer.nbytes for buffer in step.buffers())
    settings = deepspeed_settings(config, WORKERS, MICRO_BATCHES)
    settings["zero_optimization"]["reduce_bucket_size"] = BUCKET
    if stage == 3:
        keys = ("stage3_max_live_parameters", "stage3_max_reuse_distance")
        settings["zero_optimization"] |= dict.fromkeys(keys, LIVE) | {"stage3_param_persistence_threshold": 0}
    if stage == 3 and precision == "bf16":
        gather_as_bf16(step.model)
    engine = start_engine(step, build_optimizer(step.model, config.optimizer), settings, own_clip_norm(config))
    for _ in range(2):  # ZeRO 3 notes in the first steps what is used when
        _take_step(engine, batch)
    with Traffic() as traffic:
        _take_step(engine, batch)
    engine.backward(engine(batch))
    kept = _bytes_of_tensors(engine) - before - tables
    return sharding, kept, traffic.sent


def _take_step(engine: Any, batch: MicroBatch) -> None:
    for _ in range(MICRO_BATCHES):
        engine.backward(engine(batch))
        engine.step()


class Traffic(TorchDispatchMode):
    """Counts what a rank sends."""

    sent = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func.overloadpacket.__name__
            # The whole of it: of a gathering the output, of a scattering the input.
            largest = max((_bytes(argument) for argument in args), default=0)
            self.sent += SHARES[name] * largest * (WORKERS - 1) / WORKERS
        return func(*args, **(kwargs or {}))


def _bytes(argument: Any) -> int:
    return sum(leaf.nbytes for leaf in tree_leaves(argument) if isinstance(leaf, Tensor))


def _bytes_of_tensors(engine: Any) -> int:
    """Of all tensors that exist, each storage once."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if isinstance(thing, Tensor)]
    if engine is not None:
        tensors += [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _batch(config: PretrainConfig) -> MicroBatch:
    return MicroBatch(
        frames=torch.zeros(1, *config.input_size, 3, dtype=torch.uint8),
        labels=torch.zeros(1, dtype=torch.int64),
        sample_ids=["0#0"],
        epochs=[0],
        position=0,
        seed=0,
        step=0,
        index=0,
    )
