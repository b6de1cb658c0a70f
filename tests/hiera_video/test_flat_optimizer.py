"""One group with many rates takes the steps that torch's optimizers take with many groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from hiera_video.flat_optimizer import FlatOptimizer, Rates, Span
from hiera_video.models.presets import create_model
from hiera_video.optimization import OptimizerConfig, build_optimizer, parameter_groups, set_learning_rate
from tests.support.fake_cuda import FakeCuda

STEPS = 4


def configured(name: Any, **keys: Any) -> OptimizerConfig:
    return OptimizerConfig(name=name, layer_decay=0.7, learning_rate=1e-2, **keys)


def torch_optimizer(model: torch.nn.Module, config: OptimizerConfig) -> tuple[Any, Callable[[float], None]]:
    """torch's own over the same groups, and how its rate is set."""
    groups = parameter_groups(model, config)
    optimizer: Any = (
        torch.optim.AdamW(groups, betas=config.betas)
        if config.name == "adamw"
        else torch.optim.SGD(groups, momentum=0.9, nesterov=True)
    )

    def set_rate(rate: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]

    return optimizer, set_rate


def trained(name: str, *, by_torch: bool) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model, config = create_model("hiera_test_8x64", num_classes=3), configured(name)
    if by_torch:
        optimizer, set_rate = torch_optimizer(model, config)
    else:
        optimizer = build_optimizer(model, config)
        set_rate = lambda rate: set_learning_rate(optimizer, rate)  # noqa: E731
    for step in range(STEPS):
        set_rate(1e-2 * (step + 1))
        optimizer.zero_grad()
        model(torch.randn(1, 3, 8, 64, 64, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        optimizer.step()
    return dict(model.state_dict())


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_steps_are_torchs_to_the_last_bit(name: str) -> None:
    ours, theirs = trained(name, by_torch=False), trained(name, by_torch=True)
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def flat(name: str, sizes: dict[Rates, int], padding: int = 0) -> tuple[FlatOptimizer, Tensor]:
    """An optimizer whose parameters lie in one buffer, as DeepSpeed puts them."""
    groups = [
        {"params": [torch.nn.Parameter(torch.ones(size))], "lr_scale": rates.scale, "weight_decay": rates.weight_decay}
        for rates, size in sizes.items()
    ]
    optimizer: FlatOptimizer = type(build_optimizer(torch.nn.Linear(1, 1), configured(name)))(groups, 0.1, *_last(name))
    buffer = torch.ones(sum(sizes.values()) + padding, requires_grad=True)
    optimizer.param_groups[0]["params"] = [buffer]
    return optimizer, buffer


def _last(name: str) -> tuple[Any, ...]:
    return ((0.9, 0.999),) if name == "adamw" else (0.9,)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_each_span_of_a_buffer_has_its_rates(name: str) -> None:
    """Three elements learn at the full rate with decay, two at half of it; one is padding."""
    rates = {Rates(1.0, 0.1): 3, Rates(0.5, 0.0): 2}
    optimizer, buffer = flat(name, rates, padding=1)
    whole, half = rates
    optimizer.lay_out({buffer: [Span(3, 2, half), Span(0, 1, whole), Span(1, 2, whole), Span(5, 0, whole)]})
    for _ in range(STEPS):
        buffer.grad = torch.full((6,), 0.5)
        optimizer.step()
    expected = [torch.full((size,), 1.0, requires_grad=True) for size in rates.values()]
    for value, (scale, decay) in zip(expected, rates, strict=True):
        settings = {"lr": 0.1 * scale, "weight_decay": decay}
        single: Any = (
            torch.optim.AdamW([value], **settings)
            if name == "adamw"
            else torch.optim.SGD([value], momentum=0.9, nesterov=True, **settings)
        )
        for _ in range(STEPS):
            value.grad = torch.full_like(value, 0.5)
            single.step()
    torch.testing.assert_close(buffer[:5], torch.cat(expected), rtol=1e-6, atol=0)
    assert buffer[5] == 1.0
    assert all(state.numel() in (1, 6) for state in optimizer.state[buffer].values())


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_share_that_is_nothing_but_padding_stays_as_it_is(name: str) -> None:
    """The last rank's, where the others' shares hold all parameters already."""
    optimizer, buffer = flat(name, {}, padding=2)
    optimizer.lay_out({buffer: [Span(0, 0, Rates(1.0, 0.1))]})
    buffer.grad = torch.ones(2)
    optimizer.step()
    assert buffer.tolist() == [1.0, 1.0]


def test_neighbours_with_the_same_rates_are_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer's parameters take one call of the kernel, not one each."""
    rates = Rates(1.0, 0.0)
    optimizer, buffer = flat("adamw", {rates: 6})
    optimizer.lay_out({buffer: [Span(number, 1, rates) for number in range(6)]})
    calls: list[int] = []
    monkeypatch.setattr(optimizer, "_update", lambda pieces, *_: calls.append(len(pieces)))
    buffer.grad = torch.ones(6)
    optimizer.step()
    assert calls == [1]


@pytest.mark.parametrize(("gradient", "scale"), [(3.0, 1.0 / 12.0), (0.1, 1.0)])
def test_gradients_are_clipped_to_the_norm_over_all_ranks(
    gradient: float, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks with the same share of eight elements: the norm is 4 times the gradient, and at most 1."""
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.mul_(2))
    rates = Rates(1.0, 0.0)
    optimizer, buffer = flat("sgd", {rates: 8})
    optimizer.lay_out({buffer: [Span(0, 8, rates)]}, clip_norm=1.0)
    buffer.grad = torch.full((8,), gradient)
    optimizer.step()
    torch.testing.assert_close(buffer.grad, torch.full((8,), gradient * scale), rtol=1e-5, atol=0)


def test_a_gradient_that_is_no_number_spoils_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """So it is seen: a run must not continue as if the step had been taken."""
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor)
    rates = Rates(1.0, 0.0)
    optimizer, buffer = flat("adamw", {rates: 2})
    optimizer.lay_out({buffer: [Span(0, 2, rates)]}, clip_norm=1.0)
    buffer.grad = torch.tensor([1.0, float("inf")])
    optimizer.step()
    assert not buffer.isfinite().all()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_on_cuda_the_kernels_are_fused_and_nothing_waits(name: Any) -> None:
    with FakeCuda() as cuda:
        model = cuda.place(torch.nn.Linear(3, 2))
        optimizer = build_optimizer(model, configured(name))
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        with cuda.no_waits():
            for _ in range(2):
                optimizer.step()
    kernel = "_fused_adamw_" if name == "adamw" else "_fused_sgd_"
    assert any(kernel in str(operation) for operation in cuda.operations)
