"""What is refused before PyTorch reads it, and what is not: see `tests/jobs/test_bombs.py` for the bombs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hiera_video.models.presets import create_model
from hiera_video.weights.checkpoint_files import load_weights, official_state_dict
from hiera_video.weights.pickles import is_in_the_file, refuse_growing


@pytest.mark.parametrize("new_format", [False, True])
def test_what_torch_saves_is_read(new_format: bool, tmp_path: Path) -> None:
    model, path = create_model("hiera_test_8x64"), tmp_path / "w.pth"
    content = {"model_state": official_state_dict(model), "epoch": 3, "arguments": {"lr": 0.1, "names": ["a"]}}
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    refuse_growing(path)
    loaded = create_model("hiera_test_8x64")
    load_weights(loaded, path)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_tensor_holds_its_values() -> None:
    whole = torch.zeros(4, 6)
    views = (whole, whole.T, whole[1:], whole.bfloat16(), torch.zeros(0), torch.tensor(1.0))
    assert all(map(is_in_the_file, views))
    none: tuple[Tensor, ...] = (
        torch.zeros(1).expand(2), torch.zeros(2, device="meta"), torch.zeros(2).to_sparse(),
    )  # fmt: skip
    assert not any(map(is_in_the_file, none))
