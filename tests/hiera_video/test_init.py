"""The front door for scripts and notebooks."""

from __future__ import annotations

from pathlib import Path

import torch

import hiera_video
from hiera_video.models.hiera import Hiera, HieraEncoder
from hiera_video.models.masked_autoencoder import MaskedAutoencoder


def test_every_name_of_the_front_door_exists_and_says_what_it_does() -> None:
    assert sorted(hiera_video.__all__) == hiera_video.__all__
    assert all(getattr(hiera_video, name).__doc__ for name in hiera_video.__all__)


def test_from_a_name_to_files_and_back(tmp_path: Path) -> None:
    assert {"hiera_test_8x64", "mae_hiera_test_8x64"} <= set(hiera_video.model_names())
    mae = hiera_video.create_model("mae_hiera_test_8x64")
    assert isinstance(mae, MaskedAutoencoder)
    hiera_video.save_model(tmp_path / "mae.safetensors", mae)
    assert isinstance(hiera_video.load_model(tmp_path / "mae.safetensors"), MaskedAutoencoder)
    pixels = torch.zeros(1, 3, 8, 64, 64)
    for backbone in (
        hiera_video.load_backbone(tmp_path / "mae.safetensors"),
        hiera_video.create_backbone("hiera_test_8x64"),
    ):
        assert isinstance(backbone, HieraEncoder)
        assert [tuple(features.shape[2:4]) for features in backbone(pixels)] == [(16, 16), (8, 8), (4, 4), (2, 2)]


def test_public_weights_come_in_and_go_out() -> None:
    first, second = (hiera_video.create_model("hiera_test_8x64") for _ in range(2))
    assert isinstance(second, Hiera)
    hiera_video.load_official(second, hiera_video.official_state_dict(first))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
