"""Scores from frames."""

from __future__ import annotations

import torch

from hiera_video.inference import Probabilities
from hiera_video.models.hiera import Hiera
from hiera_video.models.presets import create_model


def test_close_classes_do_not_tie_in_bfloat16() -> None:
    torch.manual_seed(0)
    model = create_model("hiera_test_8x64").eval()
    assert isinstance(model, Hiera)
    with torch.no_grad():
        model.head.weight.mul_(1000)  # fresh heads give every class the same
        model.head.weight[1] = model.head.weight[0] * (1 + 1e-4)
    frames = torch.randint(256, (2, *model.config.input_size, 3), dtype=torch.uint8)
    with torch.inference_mode():
        scores = Probabilities(model, torch.bfloat16)(frames)
    assert (scores[:, 0] != scores[:, 1]).all()
    assert scores.sum(1).allclose(torch.ones(2))
