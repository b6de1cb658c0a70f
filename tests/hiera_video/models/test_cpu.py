"""What is done differently on a CPU for speed gives what the plain formula gives."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hiera_video.models import cpu
from hiera_video.models.cpu import CACHED_SCORES_BYTES, Linear, Shortcut, attend, run_in_unit_groups, takes
from hiera_video.models.presets import create_model
from hiera_video.models.random_draws import random_keep_mask


def gradients(output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
    return torch.autograd.grad((output * weights).sum(), inputs)


SHORTCUTS: tuple[Shortcut, ...] = get_args(Shortcut)


def taken(tensor: Tensor) -> set[str]:
    return {shortcut for shortcut in SHORTCUTS if takes(shortcut, tensor)}


def test_the_switch_decides_by_device_type_and_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    single, half = torch.zeros(1), torch.zeros(1, dtype=torch.bfloat16)
    assert taken(single) == {"onednn products"}
    assert taken(half) == {"three-step attention"}
    with torch.no_grad():
        assert taken(single) == {"onednn products", "units in cache"}
        assert taken(single.to("meta")) == taken(half.to("meta")) == set()
        with torch.autocast("cpu", torch.bfloat16):
            assert taken(single) == {"units in cache"}
    with monkeypatch.context() as patch:
        patch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
        assert taken(half) == set()
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert taken(single) == taken(half) == set()


@pytest.mark.parametrize("name", ["hiera_test_8x64", "mae_hiera_test_8x64"])
def test_a_model_gives_the_same_without_shortcuts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pixels = create_model(name).eval(), torch.randn(2, 3, 8, 64, 64)
    draws = {"keep_mask": random_keep_mask(2, 16, 0.75)} if name.startswith("mae_") else {}
    with torch.no_grad():
        fast = model(pixels, **draws)
        monkeypatch.setattr(cpu, "takes", lambda *_: False)
        plain = model(pixels, **draws)
    for own, reference in zip(fast, plain, strict=True):
        torch.testing.assert_close(own, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("feeds_pooling", [False, True])
def test_linear_equals_the_plain_product(feeds_pooling: bool) -> None:
    layer, inputs = Linear(13, 21), torch.randn(2, 3, 5, 13, requires_grad=True)
    layer.feeds_pooling = feeds_pooling
    expected = functional.linear(inputs, layer.weight, layer.bias)
    actual = layer(inputs)
    torch.testing.assert_close(actual, expected)
    wanted = (inputs, layer.weight, layer.bias)
    for own, plain in zip(gradients(actual, *wanted), gradients(expected, *wanted), strict=True):
        torch.testing.assert_close(own, plain, rtol=1e-5, atol=1e-5)


def test_linear_with_frozen_parts() -> None:
    layer = Linear(4, 6).requires_grad_(False)
    layer.feeds_pooling = False
    inputs = torch.randn(3, 4, requires_grad=True)
    layer(inputs).sum().backward()
    torch.testing.assert_close(inputs.grad, layer.weight.sum(dim=0).expand(3, 4))
    assert not layer(torch.randn(3, 4)).requires_grad


def test_only_layers_without_a_pooling_behind_them_train_by_another_library() -> None:
    mae = create_model("mae_hiera_test_8x64")
    kinds = {name.split(".")[0]: set() for name, _ in mae.named_children()}
    for name, module in mae.named_modules():
        if isinstance(module, Linear):
            kinds[name.split(".")[0]].add(module.feeds_pooling)
    assert kinds["encoder"] == {True}
    assert kinds["decoder"] == {False}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_linear_steps_aside_for_other_types(dtype: torch.dtype) -> None:
    layer, inputs = Linear(4, 6).to(dtype), torch.randn(3, 4, dtype=dtype)
    assert torch.equal(layer(inputs), functional.linear(inputs, layer.weight, layer.bias))


@pytest.mark.parametrize("tokens", [(16, 64), (1600, 1600), (700, 5200)], ids=["at once", "by head", "more keys"])
def test_bfloat16_attention_is_as_exact_as_bfloat16_allows(
    tokens: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "takes", lambda shortcut, query: query.dtype == torch.bfloat16)
    queries, keys = tokens
    shapes = [(2, 4, count, 16) for count in (queries, keys, keys)]
    parts = [torch.randn(shape).bfloat16().requires_grad_() for shape in shapes]
    assert (2 * 4 * queries * keys * 2 > CACHED_SCORES_BYTES) == (queries > 16)
    exact = [part.detach().float().requires_grad_() for part in parts]
    with monkeypatch.context() as patch:
        patch.delattr(functional, "scaled_dot_product_attention")
        actual = attend(*parts)
    expected = functional.scaled_dot_product_attention(*exact)
    pairs = zip((actual, *gradients(actual, *parts)), (expected, *gradients(expected, *exact)), strict=True)
    for own, reference in pairs:
        assert own.dtype == torch.bfloat16
        assert ((own.float() - reference).norm() / reference.norm()).item() < 0.02


def test_units_run_in_groups_without_gradients_only() -> None:
    def run(tokens: Tensor) -> list[Tensor]:
        sizes.append(tokens.shape[:2].numel())
        return [tokens.amax(2, keepdim=True), tokens * 2]

    sizes: list[int] = []
    tokens = torch.randn(3, 25, 4, 5)
    with_gradients = run_in_unit_groups(run, tokens)
    with torch.no_grad():
        without = run_in_unit_groups(run, tokens)
    assert sizes == [75, 32, 32, 11]
    assert all(torch.equal(a, b) for a, b in zip(with_gradients, without, strict=True))


@pytest.mark.parametrize("options", [{}, {"stages": (1, 1, 1, 1)}, {"mask_unit_attn": (True, False, False, False)}])
@pytest.mark.parametrize("mask_unit_attn_everywhere", [False, True])
def test_inference_in_groups_of_units_changes_nothing(
    options: dict[str, object], mask_unit_attn_everywhere: bool
) -> None:
    if mask_unit_attn_everywhere:
        options = options | {"mask_unit_attn": (True,) * 4}
    model = create_model("hiera_test_8x64", input_size=(16, 96, 96), **options).eval()
    pixels = torch.randn(2, 3, 16, 96, 96)
    expected = model(pixels).detach(), *(features.detach() for features in model.features(pixels))
    with torch.no_grad():
        actual = model(pixels), *model.features(pixels)
    for own, plain in zip(actual, expected, strict=True):
        torch.testing.assert_close(own, plain, rtol=1e-5, atol=1e-6)
