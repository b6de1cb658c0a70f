"""Optimizer state by name: gathered from one world size and ZeRO stage, laid out for another."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from hiera_video.optimization import OptimizerConfig, build_optimizer
from jobs.checkpoints.optimizer_state import (
    gather_optimizer_state,
    gather_weights,
    own_share,
    scatter_optimizer_state,
    step_was_sound,
)
from jobs.training.sharding.engine import start_engine
from jobs.training.steps.step import TrainStep
from tests.support.ranks import on_ranks

pytestmark = pytest.mark.ray  # DeepSpeed takes seconds to start

MICRO_BATCHES, STEPS, SAVED_AT = 2, 6, 3
LONG = 50


class TinyStep(TrainStep):
    """Sum of squared features: enough to move every parameter of several groups."""

    def forward(self, batch: Any) -> Tensor:
        return self.model(batch).square().mean()


def _engine(stage: int, optimizer: str, world: int, weights: dict[str, Tensor] | None) -> Any:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(7, 13), nn.LayerNorm(13), nn.GELU(), nn.Linear(13, 5))
    step = TinyStep(network)
    if weights:
        network.load_state_dict(weights)
    config = OptimizerConfig(name=optimizer, learning_rate=1e-2, weight_decay=0.05)  # type: ignore[arg-type]
    settings = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": MICRO_BATCHES // world,
        "gradient_clipping": 0.5,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
    }
    return start_engine(step, build_optimizer(network, config), settings)


def _train_rank(case: tuple[int, str], first: int, last: int, start: Path | None, end: Path) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    saved = torch.load(start, weights_only=True) if start else None
    engine = _engine(*case, world, saved["weights"] if saved else None)
    if saved:
        scatter_optimizer_state(engine, saved["optimizer"])
    losses = []
    for step in range(first, last):
        sums = torch.zeros(())
        for turn in range(MICRO_BATCHES // world):
            generator = torch.Generator().manual_seed(step * MICRO_BATCHES + turn * world + rank)
            loss = engine(torch.randn(2, 7, generator=generator))
            engine.backward(loss)
            engine.step()
            sums += loss.detach() / MICRO_BATCHES
        dist.all_reduce(sums)
        losses.append(float(sums))
    saves = rank == 0
    state = {"weights": gather_weights(engine, keep=saves), "optimizer": gather_optimizer_state(engine, keep=saves)}
    assert saves or not (state["weights"] or state["optimizer"])
    state["losses"] = {"losses": torch.tensor(losses, dtype=torch.float64)}
    if rank == 0:
        torch.save(state, end)


def _train(case: tuple[int, str], world: int, first: int, last: int, start: Path | None, end: Path) -> dict[str, Any]:
    on_ranks(world, _train_rank, case, first, last, start, end)
    state: dict[str, Any] = torch.load(end, weights_only=True)
    return state


CASES = [(2, "sgd"), *((stage, "adamw") for stage in (0, 1, 3))]
OTHERS = [(0, "sgd"), (1, "sgd"), (2, "adamw"), (3, "sgd")]


@pytest.mark.slow  # test_driver.py has one case of this, whole
@pytest.mark.timeout(400)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_resume_is_exact_and_free_of_world_size(case: tuple[int, str], tmp_path: Path) -> None:
    whole = _train(case, 2, 0, STEPS, None, tmp_path / "whole")
    half = tmp_path / "half"
    _train(case, 2, 0, SAVED_AT, None, half)
    same = _train(case, 2, SAVED_AT, STEPS, half, tmp_path / "same")
    other = _train(case, 1, SAVED_AT, STEPS, half, tmp_path / "other")
    assert whole["optimizer"].keys() == same["optimizer"].keys()
    assert len(whole["optimizer"]) >= 6  # every parameter has its state
    for kind in ("weights", "optimizer"):
        for name, expected in whole[kind].items():
            assert torch.equal(same[kind][name], expected), name
            torch.testing.assert_close(other[kind][name], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", [(0, "adamw"), (1, "adamw"), (3, "adamw"), *OTHERS, (2, "sgd")], ids=str)
def test_two_workers_then_one_then_two_over_fifty_steps(
    case: tuple[int, str], reference: dict[str, Tensor], tmp_path: Path
) -> None:
    """The losses of a run that changes its workers twice: those of plain DeepSpeed data parallelism (ZeRO 0)."""
    first = _train(case, 2, 0, 17, None, tmp_path / "first")
    second = _train(case, 1, 17, 34, tmp_path / "first", tmp_path / "second")
    third = _train(case, 2, 34, LONG, tmp_path / "second", tmp_path / "third")
    losses = torch.cat([part["losses"]["losses"] for part in (first, second, third)])
    torch.testing.assert_close(losses, reference[case[1]], rtol=1e-5, atol=0)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    folder = tmp_path_factory.mktemp("reference")
    names = ("adamw", "sgd")
    return {name: _train((0, name), 2, 0, LONG, None, folder / name)["losses"]["losses"] for name in names}


def test_what_is_gathered_stays_as_it_is_while_training_continues() -> None:
    """It is written in the background: a count of steps that counts on would spoil the bias correction at resume."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    engine = SimpleNamespace(module=TinyStep(model), optimizer=optimizer, zero_optimization_stage=lambda: 0)

    def take_step() -> None:
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()

    take_step()
    state = {**gather_optimizer_state(engine), **gather_weights(engine)}
    before = {name: value.clone() for name, value in state.items()}
    assert {"step", "weight.exp_avg", "bias.exp_avg_sq", "weight"} <= set(state)
    take_step()
    assert all(torch.equal(state[name], before[name]) for name in before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_bad_weight_is_seen_whole_or_partitioned(value: float) -> None:
    model = nn.Linear(3, 2)
    engine = SimpleNamespace(
        module=TinyStep(model),
        skipped_steps=0,
        optimizer=torch.optim.SGD(model.parameters()),
        zero_optimization_stage=lambda: 1,
    )
    assert step_was_sound(engine)
    with torch.no_grad():
        model.bias[1] = value
    assert not step_was_sound(engine)
    with torch.no_grad():
        model.bias[1] = 0
    engine.skipped_steps = 1
    assert not step_was_sound(engine)


def test_padding_of_a_share_is_no_weight() -> None:
    """Five elements over two ranks, three each: what lies in the sixth place was never written."""
    last = SimpleNamespace(ds_numel=5, ds_tensor=torch.tensor([1.0, 2.0, math.nan]))
    assert own_share(last, rank=1).tolist() == [1.0, 2.0]
    assert len(own_share(last, rank=0)) == 3
    assert len(own_share(last, rank=2)) == 0


@pytest.mark.slow
def test_state_of_another_model_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state"
    _train((1, "adamw"), 1, 0, 1, None, state)
    content = torch.load(state, weights_only=True)
    content["optimizer"] = {name: value for name, value in content["optimizer"].items() if "0.weight" not in name}
    torch.save(content, state)
    with pytest.raises(Exception, match="another model"):
        _train((1, "adamw"), 1, 1, 2, state, tmp_path / "end")
