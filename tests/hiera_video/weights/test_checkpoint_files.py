"""Weights in and out: safetensors, public files, pretraining into a classifier, and other input sizes."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from hiera_video.models.presets import create_model
from hiera_video.weights.checkpoint_files import (
    load_into_classifier,
    load_model,
    load_official,
    load_weights,
    official_state_dict,
    read_metadata,
    save_model,
)
from hiera_video.weights.pos_embed_interpolation import fit_table
from tests.support.huggingface import huggingface_state_dict, load_huggingface


@pytest.mark.parametrize("name", ["hiera_test_8x64", "mae_hiera_test_8x64"])
def test_safetensors_carry_weights_configuration_and_metadata(name: str, tmp_path: Path) -> None:
    model = create_model(name, drop_path_rate=0.1)
    save_model(tmp_path / "model.safetensors", model, {"run_id": "7"})
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.config == model.config
    assert read_metadata(tmp_path / "model.safetensors")["run_id"] == "7"
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("name", ["hiera_test_8x64", "mae_hiera_test_8x64"])
def test_official_file_loads_strictly_with_a_note_on_its_license(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, other = create_model(name), create_model(name)
    torch.save({"model_state": official_state_dict(model)}, tmp_path / "official.pth")
    with caplog.at_level(logging.WARNING):
        load_weights(other, tmp_path / "official.pth")
    assert "If these are Meta's published weights" in caplog.text
    assert "CC-BY-NC 4.0" in caplog.text
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), model.parameters(), strict=True))
    caplog.clear()
    load_official(other, {"model_state": official_state_dict(model)})
    assert "If these are Meta's published weights" in caplog.text


def test_weights_of_the_hub_come_with_a_note_on_their_license(caplog: pytest.LogCaptureFixture) -> None:
    model = create_model("hiera_tiny_224", input_size=(64, 64), stages=(1, 1, 1, 1))
    load_huggingface(model, huggingface_state_dict(model))
    assert "If these are Meta's published weights" in caplog.text


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_pretraining_starts_a_classifier(suffix: str, tmp_path: Path) -> None:
    mae = create_model("mae_hiera_test_8x64")
    path = tmp_path / f"pretrained.{suffix}"
    if suffix == "pth":
        torch.save({"model_state": official_state_dict(mae)}, path)
    else:
        save_model(path, mae)
    model = create_model("hiera_test_8x64")
    report = load_into_classifier(model, path)
    assert report.new == ["norm.weight", "norm.bias", "head.weight", "head.bias"]
    assert all(name.startswith(("decoder.", "fusion.", "encoder_norm.")) for name in report.unused)
    assert report.unused
    for name, parameter in mae.encoder.named_parameters():
        assert f"encoder.{name}" in report.taken
        assert torch.equal(model.encoder.get_parameter(name), parameter)


def test_another_number_of_classes_keeps_a_new_head(tmp_path: Path) -> None:
    save_model(tmp_path / "eight.safetensors", create_model("hiera_test_8x64"))
    model = create_model("hiera_test_8x64", num_classes=3)
    report = load_into_classifier(model, tmp_path / "eight.safetensors")
    assert report.new == ["head.weight", "head.bias"]
    assert "head.weight" in report.unused
    assert "norm.weight" in report.taken


def test_the_last_blocks_stay_new_on_request(tmp_path: Path) -> None:
    mae = create_model("mae_hiera_test_8x64")
    save_model(tmp_path / "mae.safetensors", mae)
    model = create_model("hiera_test_8x64")
    depth = len(model.encoder.blocks)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load_into_classifier(model, tmp_path / "mae.safetensors", new_blocks=1)
    last = f"encoder.blocks.{depth - 1}."
    assert any(name.startswith(last) for name in report.new)
    assert not any(name.startswith(last) for name in report.taken)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) or not name.startswith(last)
    with pytest.raises(ValueError, match=f"has {depth} blocks; use 0 to {depth}"):
        load_into_classifier(model, tmp_path / "mae.safetensors", new_blocks=depth + 1)


@pytest.mark.parametrize("size", [(16, 64, 64), (8, 96, 64), (4, 128, 96)])
def test_weights_of_another_input_size_are_interpolated(size: tuple[int, ...], tmp_path: Path) -> None:
    mae = create_model("mae_hiera_test_8x64")
    save_model(tmp_path / "mae.safetensors", mae)
    larger = load_model(tmp_path / "mae.safetensors", input_size=size)
    encoder, grid = larger.encoder, (size[0] // 2, size[1] // 4, size[2] // 4)
    space = mae.encoder.pos_embed.spatial.view(1, 16, 16, 8).permute(0, 3, 1, 2)
    expected = functional.interpolate(space, grid[1:], mode="bicubic", align_corners=False)
    torch.testing.assert_close(encoder.pos_embed.spatial, expected.permute(0, 2, 3, 1).reshape(1, -1, 8))
    time = functional.interpolate(mae.encoder.pos_embed.temporal.mT, grid[0], mode="linear", align_corners=False)
    torch.testing.assert_close(encoder.pos_embed.temporal, time.mT)
    assert larger.decoder.pos_embed.shape[1] == grid[0] * grid[1] * grid[2] // 16
    assert larger(torch.randn(1, 3, *size)).loss.isfinite()
    report = load_into_classifier(create_model("hiera_test_8x64", input_size=size), tmp_path / "mae.safetensors")
    assert "encoder.pos_embed.spatial" in report.taken


def test_public_weights_of_another_size_are_taken_for_square_in_space() -> None:
    small = create_model("mae_hiera_test_8x64")
    large = create_model("mae_hiera_test_8x64", input_size=(16, 96, 64))
    load_official(large, official_state_dict(small))
    expected = fit_table(small.decoder.pos_embed, (4, 4, 4), (8, 6, 4))
    torch.testing.assert_close(large.decoder.pos_embed, expected)
    image = create_model("hiera_tiny_224", input_size=(64, 96), stages=(1, 1, 1, 1))
    other = create_model("hiera_tiny_224", input_size=(96, 96), stages=(1, 1, 1, 1))
    with pytest.raises(ValueError, match="not square in space; name the input size"):
        load_official(other, official_state_dict(image))
    load_official(other, official_state_dict(image), source_input_size=(64, 96))


def test_weights_for_pixels_of_another_normalisation_are_refused(tmp_path: Path) -> None:
    colours = {"pixel_mean": (0.5, 0.5, 0.5), "pixel_std": (0.25, 0.25, 0.25)}
    save_model(tmp_path / "other.safetensors", create_model("hiera_test_96", **colours))
    for load in (load_weights, load_into_classifier):
        with pytest.raises(ValueError, match=r"another normalisation: pixel_mean=\[0.5, 0.5, 0.5\]"):
            load(create_model("hiera_test_96"), tmp_path / "other.safetensors")
        load(create_model("hiera_test_96", **colours), tmp_path / "other.safetensors")
    assert load_model(tmp_path / "other.safetensors").config.pixel_mean == (0.5, 0.5, 0.5)


def test_files_of_older_releases_have_the_normalisation_of_videos(tmp_path: Path) -> None:
    model = create_model("hiera_test_8x64")
    config = {key: value for key, value in dataclasses.asdict(model.config).items() if not key.startswith("pixel")}
    del config["interpolation"], config["crop_share"]
    metadata = {"format": "hiera_video", "config_class": "HieraConfig", "config": json.dumps(config)}
    save_file(model.state_dict(), tmp_path / "old.safetensors", metadata=metadata)
    assert load_model(tmp_path / "old.safetensors").config == model.config
