"""The same weights give the same numbers as `transformers`, and its weights come and go without a loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import HieraConfig, HieraForImageClassification, HieraForPreTraining, HieraModel

from hiera_video.models.presets import create_model
from hiera_video.models.random_draws import keep_smallest
from hiera_video.weights.checkpoint_files import (
    load_into_classifier,
    load_weights,
    official_state_dict,
    save_model,
)
from tests.support.huggingface import huggingface_state_dict, load_huggingface
from tests.support.official import (
    GRADIENT_TOLERANCE,
    TOLERANCE,
    peers,
    randomize,
    relative_difference,
)

OURS = {"input_size": (64, 96), "stages": (1, 2, 2, 1)}
THEIRS = {"image_size": (64, 96), "depths": (1, 2, 2, 1), "embed_dim": 96, "num_heads": (1, 2, 4, 8)}


def build(architecture: type[nn.Module], **arguments: object) -> nn.Module:
    model = architecture(HieraConfig(**THEIRS, **arguments))
    randomize(model)
    return model.eval()


def pretraining_peers(mask_ratio: float = 0.5) -> tuple[nn.Module, nn.Module]:
    decoder = {"decoder_depth": 2, "decoder_hidden_size": 64, "decoder_num_heads": 4}
    theirs = build(HieraForPreTraining, num_query_pool=2, mask_ratio=mask_ratio, **decoder)
    widths = {"decoder_depth": 2, "decoder_embed_dim": 64, "decoder_num_heads": 4}
    ours = create_model("mae_hiera_tiny_224", mask_ratio=mask_ratio, **OURS, **widths)
    load_huggingface(ours, theirs.state_dict())
    return ours.eval(), theirs


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def test_image_classification(pixels: Tensor) -> None:
    theirs = build(HieraForImageClassification, num_labels=7)
    ours = create_model("hiera_tiny_224", num_classes=7, **OURS).eval()
    load_huggingface(ours, theirs.state_dict())
    expected = theirs(pixels, output_hidden_states=True)
    logits = ours(pixels)
    assert relative_difference(logits, expected.logits) < TOLERANCE
    for own, public in zip(ours.features(pixels), expected.reshaped_hidden_states[1:], strict=True):
        assert relative_difference(own, public) < TOLERANCE
    logits.square().sum().backward()
    expected.logits.square().sum().backward()
    own = huggingface_state_dict(ours)
    for (name, value), parameter in zip(own.items(), ours.parameters(), strict=True):
        assert value.shape == parameter.shape
        public = theirs.get_parameter(name).grad
        assert relative_difference(parameter.grad, public) < GRADIENT_TOLERANCE, name


def test_pretraining(pixels: Tensor) -> None:
    ours, theirs = pretraining_peers()
    noise = torch.rand(2, ours.num_mask_units, generator=torch.Generator().manual_seed(2))
    keep_mask = keep_smallest(noise, 3)
    expected = theirs(pixels, noise=noise)
    output = ours(pixels, keep_mask=keep_mask)
    hidden = ~expected.bool_masked_pos
    assert relative_difference(output.loss, expected.loss) < TOLERANCE
    assert relative_difference(output.prediction, expected.logits[hidden]) < TOLERANCE


@pytest.mark.parametrize("architecture", [HieraModel, HieraForImageClassification])
def test_classifier_weights_go_back(architecture: type[nn.Module], pixels: Tensor) -> None:
    ours = create_model("hiera_tiny_224", num_classes=7, **OURS).eval()
    theirs = build(architecture, num_labels=7)
    theirs.load_state_dict(huggingface_state_dict(ours, architecture.__name__), strict=True)
    pooled = theirs(pixels).pooler_output if architecture is HieraModel else theirs(pixels).logits
    assert relative_difference(pooled, ours.embed(pixels) if architecture is HieraModel else ours(pixels)) < TOLERANCE


def test_pretraining_weights_go_back() -> None:
    ours, theirs = pretraining_peers()
    exported = huggingface_state_dict(ours)
    assert exported.keys() == theirs.state_dict().keys()
    assert all(torch.equal(exported[name], value) for name, value in theirs.state_dict().items())


def test_bare_model_fills_a_classifier_but_for_its_head(tmp_path: Path) -> None:
    theirs = build(HieraModel)
    torch.save(theirs.state_dict(), tmp_path / "hiera.pth")
    ours = create_model("hiera_tiny_224", num_classes=7, **OURS)
    report = load_into_classifier(ours, tmp_path / "hiera.pth")
    assert report.new == ["head.weight", "head.bias"]
    assert report.unused == []
    assert torch.equal(ours.norm.weight, theirs.pooler.layernorm.weight)


def test_pretraining_file_loads_by_name(tmp_path: Path) -> None:
    ours, theirs = pretraining_peers()
    theirs.save_pretrained(tmp_path)
    fresh = create_model("mae_hiera_tiny_224", **{**_overrides(ours), "mask_ratio": 0.5})
    load_weights(fresh, tmp_path / "model.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), ours.parameters(), strict=True))


def _overrides(model: nn.Module) -> dict[str, object]:
    keys = ("input_size", "stages", "decoder_depth", "decoder_embed_dim", "decoder_num_heads")
    return {key: getattr(model.config, key) for key in keys}


def test_saved_here_reads_as_ours(tmp_path: Path) -> None:
    ours = create_model("hiera_tiny_224", num_classes=7, **OURS)
    save_model(tmp_path / "model.safetensors", ours)
    report = load_into_classifier(create_model("hiera_tiny_224", num_classes=7, **OURS), tmp_path / "model.safetensors")
    assert report.new == []


def test_official_names_survive_the_round_trip() -> None:
    for name in ("hiera_base_16x224", "mae_hiera_tiny_224"):
        ours, theirs = peers(name)
        exported = official_state_dict(ours)
        assert exported.keys() == theirs.state_dict().keys()
        theirs.load_state_dict(exported, strict=True)
