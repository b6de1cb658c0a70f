"""The encoder and the classifier: any divisible size, features, what they refuse, and every mode of execution."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from hiera_video.models.presets import create_backbone, create_model, set_activation_checkpointing
from hiera_video.models.random_draws import random_keep_mask
from tests.hiera_video.models.golden import GOLDEN, golden_values
from tests.support.official import (
    PUBLIC_PRESETS,
    TOLERANCE,
    assert_same_gradients,
    half_mask,
    official_logits,
    peers,
    relative_difference,
    small_pixels,
)
from tests.support.small_models import loss_of

CLIP = (2, 3, 8, 64, 64)


@pytest.mark.parametrize("size", [(8, 96, 96), (32, 64, 64), (16, 64, 128)])
def test_any_divisible_size(size: tuple[int, ...]) -> None:
    maps = create_backbone("hiera_test_8x64", input_size=size)(torch.randn(1, 3, *size))
    for stage, features in enumerate(maps):
        side = 4 * 2**stage
        assert features.shape == (1, size[0] // 2, size[1] // side, size[2] // side, 8 * 2**stage)
    mae = create_model("mae_hiera_test_8x64", input_size=size)
    assert mae(torch.randn(1, 3, *size)).loss.isfinite()


def test_masked_maps_are_given_by_unit() -> None:
    model = create_model("hiera_test_8x64")
    maps = model.features(torch.randn(CLIP), random_keep_mask(2, 16, 0.75))
    assert [tuple(features.shape[1:-1]) for features in maps] == [(4, 1, 8 >> n, 8 >> n) for n in range(4)]
    assert (model.num_mask_units, model.encoder.order.unit_grid) == (16, (4, 2, 2))


@pytest.fixture(scope="module")
def classifier() -> torch.nn.Module:
    return create_model("hiera_test_8x64")


@pytest.fixture(scope="module")
def autoencoder() -> torch.nn.Module:
    return create_model("mae_hiera_test_8x64")


def test_features_may_see_everything(classifier: Any) -> None:
    everything = torch.ones(2, 16, dtype=torch.bool)
    assert classifier.features(torch.zeros(CLIP), everything)[-1].shape[1] == 16


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(3, 8, 64, 64), r"shape \[3, 8, 64, 64\]: must be \[B, 3, T, H, W\].*add or remove an axis"),
        (torch.zeros(2, 8, 3, 64, 64), r"8 channels on axis 1.*\['B', 3, 8, 64, 64\]; put channels before frames"),
        (torch.zeros(CLIP, dtype=torch.uint8), "uint8: must be .*floats.*normalize_video"),
        (torch.zeros(CLIP, dtype=torch.int64), "int64: must be"),
        (
            torch.zeros(2, 3, 8, 64, 96),
            r"size \(8, 64, 96\).*built for \(8, 64, 64\); resize.*input_size=\(8, 64, 96\)",
        ),
    ],
)
@pytest.mark.parametrize("entry", ["forward", "features", "embed", "autoencoder", "backbone"])
def test_wrong_input(classifier: Any, autoencoder: Any, entry: str, pixels: torch.Tensor, message: str) -> None:
    call: dict[str, Callable[[torch.Tensor], Any]] = {
        "forward": classifier,
        "features": classifier.features,
        "embed": classifier.embed,
        "autoencoder": autoencoder,
        "backbone": classifier.encoder,
    }
    with pytest.raises(ValueError, match=message):
        call[entry](pixels)


@pytest.mark.parametrize("name", ["hiera_test_8x64", "mae_hiera_test_8x64"])
def test_checkpointed_activations_give_the_same_gradients(name: str) -> None:
    model, pixels = create_model(name, drop_path_rate=0.3), torch.randn(CLIP)
    extra = {"keep_mask": random_keep_mask(2, 16, 0.75)} if name.startswith("mae_") else {}
    draws = model.draw(2)
    gradients = []
    for enabled in (False, True):
        set_activation_checkpointing(model, enabled)
        model.zero_grad()
        loss_of(model(pixels, draws=draws, **extra)).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def compiled_calls() -> list[Any]:
    def classify(training: bool) -> tuple[nn.Module, Callable[[nn.Module], Any]]:
        model = create_model("hiera_test_8x64", drop_path_rate=0.2, head_dropout=0.2).train(training)
        draws, pixels = model.draw(2), torch.randn(CLIP)
        return model, lambda m: m(pixels, draws=draws)

    def reconstruct(decoder: str, target: str = "normalized_pixels") -> tuple[nn.Module, Callable[[nn.Module], Any]]:
        model = create_model("mae_hiera_test_8x64", drop_path_rate=0.2, decoder=decoder, target=target)
        draws, pixels, keep_mask = model.draw(2), torch.randn(CLIP), random_keep_mask(2, 16, 0.75)
        return model, lambda m: m(pixels, keep_mask=keep_mask, draws=draws)

    kinds = [(reconstruct, ("full",)), (reconstruct, ("subset",)), (reconstruct, ("cross",))]
    kinds += [(reconstruct, ("full", "hog")), (classify, (True,)), (classify, (False,))]
    return [pytest.param(build, arguments, id="-".join(map(str, arguments))) for build, arguments in kinds]


@pytest.mark.parametrize(("build", "arguments"), compiled_calls())
def test_compiles_into_one_graph(build: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    model, call = build(*arguments)
    expected = loss_of(call(model))
    expected.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    loss = loss_of(call(compiled))
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_compiled_masks_are_drawn_inside_the_graph() -> None:
    mae = create_model("mae_hiera_test_8x64")
    torch.compiler.reset()
    output = torch.compile(mae, fullgraph=True, backend="aot_eager")(torch.randn(CLIP))
    assert output.keep_mask.sum(dim=1).tolist() == [4, 4]


def test_exports() -> None:
    pixels, keep_mask = torch.randn(CLIP), random_keep_mask(2, 16, 0.75)
    classifier = create_model("hiera_test_8x64").eval()
    exported = torch.export.export(classifier, (pixels,)).module()
    torch.testing.assert_close(exported(pixels), classifier(pixels))
    mae = create_model("mae_hiera_test_8x64").eval()
    exported = torch.export.export(mae, (pixels,), {"keep_mask": keep_mask}).module()
    torch.testing.assert_close(exported(pixels, keep_mask=keep_mask).loss, mae(pixels, keep_mask=keep_mask).loss)


@pytest.mark.parametrize("name", ["hiera_test_8x64", "mae_hiera_test_8x64"])
def test_bfloat16_autocast_is_near_float32(name: str) -> None:
    model, pixels = create_model(name), torch.randn(CLIP)
    extra = {"keep_mask": random_keep_mask(2, 16, 0.75)} if name.startswith("mae_") else {}
    expected = loss_of(model(pixels, **extra))
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model(pixels, **extra))
    loss.backward()
    torch.testing.assert_close(loss.float(), expected, rtol=0.02, atol=1e-4)


@pytest.mark.parametrize("name", ["hiera_test_8x64", "mae_hiera_test_8x64"])
@pytest.mark.parametrize("masked", [False, True])
def test_weights_are_read_inside_their_modules_forward(name: str, masked: bool) -> None:
    """Sharded training (ZeRO-3, FSDP) gathers a module's weights when its forward begins, and only then."""
    model, inside = create_model(name), set()
    if masked:
        model = model.encoder
    owners = {id(p): module_name for module_name, module in model.named_modules() for p in module.parameters(False)}
    for module_name, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, module_name=module_name: inside.add(module_name))
    model(torch.randn(CLIP), **({"keep_mask": random_keep_mask(2, 16, 0.75)} if masked else {}))
    assert not set(owners.values()) - inside


def test_inference_in_training_mode_still_drops_paths() -> None:
    model = create_model("hiera_test_8x64", drop_path_rate=0.5).train()
    pixels, draws = torch.randn(2, 3, 8, 64, 64), model.draw(2)
    with torch.no_grad():
        assert torch.allclose(model(pixels, draws=draws), model(pixels, draws=draws))
        without = model.eval()(pixels)
        assert not torch.allclose(model.train()(pixels, draws=draws), without)


# The same weights give the public classifier's numbers: every preset, shrunk in depth and size, not in structure.


CLASSIFIERS = [
    pytest.param(name, marks=pytest.mark.slow if "huge" in name else [])
    for name in PUBLIC_PRESETS
    if not name.startswith("mae_")
]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier_logits_features_and_gradients(name: str) -> None:
    ours, theirs = peers(name)
    video = small_pixels(name)
    with torch.no_grad():
        assert relative_difference(ours(video), official_logits(theirs, video)) < TOLERANCE
        _, maps = theirs(video, return_intermediates=True)
        for own, public in zip(ours.features(video), maps, strict=True):
            assert relative_difference(own, public) < TOLERANCE
    # In float64: rounding in float32 decides which of two nearly equal queries max pooling takes.
    ours, theirs, video = ours.double(), theirs.double(), video.double()
    ours(video).square().sum().backward()
    official_logits(theirs, video).square().sum().backward()
    assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("name", ["hiera_tiny_224", "hiera_base_plus_16x224"])
def test_masked_features(name: str) -> None:
    ours, theirs = peers(name)
    video, keep_mask = small_pixels(name), half_mask(ours)
    _, maps = theirs(video, mask=keep_mask, return_intermediates=True)
    for own, public in zip(ours.features(video, keep_mask), maps, strict=True):
        assert relative_difference(own, public) < TOLERANCE


# The results have not changed since golden.json was written.


def leaves(tree: Any, path: str = "") -> dict[str, float]:
    if isinstance(tree, dict | list):
        pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {key: value for name, branch in pairs for key, value in leaves(branch, f"{path}/{name}").items()}
    return {path: tree}


def test_golden_values() -> None:
    expected = leaves(json.loads(GOLDEN.read_text()))
    assert leaves(golden_values()) == pytest.approx(expected, rel=1e-4, abs=1e-6)
