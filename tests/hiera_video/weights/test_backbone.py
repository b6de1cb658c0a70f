"""The encoder of a weights file as a feature backbone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hiera_video.models.presets import create_model
from hiera_video.weights.backbone import load_backbone
from hiera_video.weights.checkpoint_files import official_state_dict, save_model


def test_every_stage_entry_pools_also_where_pretraining_pooled_less(tmp_path: Path) -> None:
    mae = create_model("mae_hiera_test_8x64")
    save_model(tmp_path / "mae.safetensors", mae)
    backbone = load_backbone(tmp_path / "mae.safetensors", input_size=(8, 96, 64))
    assert (mae.config.q_pool, backbone.config.q_pool, backbone.training) == (2, 3, False)
    maps = backbone(torch.zeros(1, 3, 8, 96, 64))
    assert [tuple(features.shape[1:]) for features in maps] == [(4, 24 >> n, 16 >> n, 8 << n) for n in range(4)]
    assert torch.equal(backbone.blocks[0].attn.qkv.weight, mae.encoder.blocks[0].attn.qkv.weight)


def test_a_file_without_a_model_config_is_refused(tmp_path: Path) -> None:
    torch.save(official_state_dict(create_model("hiera_test_8x64")), tmp_path / "official.pth")
    with pytest.raises(ValueError, match=r"official\.pth: contains no model config.*use create_model and load_into"):
        load_backbone(tmp_path / "official.pth")
