"""Golden values: `python -m tests.hiera_video.models.golden` writes golden.json beside this file.

Weights and inputs follow from seeds; what is kept are logits, losses and a fingerprint of every larger tensor. They
change only when the mathematics does: run the command then, and give the reason in the commit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hiera_video.models.presets import create_model
from hiera_video.models.random_draws import random_keep_mask
from tests.support.official import randomize

GOLDEN = Path(__file__).with_name("golden.json")
PRETRAINING = {
    "full": {},
    "full_without_fusion": {"multi_scale_fusion": False},
    "subset": {"decoder": "subset"},
    "cross": {"decoder": "cross"},
    "raw_pixels": {"target": "pixels"},
    "hog": {"target": "hog"},
}


def golden_values() -> dict[str, Any]:
    """Everything in golden.json, computed now."""
    video = torch.randn(2, 3, 8, 64, 64, generator=torch.Generator().manual_seed(1))
    image = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(2))
    values: dict[str, Any] = {
        "video": _classifier("hiera_test_8x64", video),
        "image": _classifier("hiera_tiny_224", image, input_size=(96, 64), stages=(1, 1, 1, 1), embed_dim=16),
    }
    for key, options in PRETRAINING.items():
        values[f"mae_{key}"] = _pretraining(video, **options)
    return values


def _classifier(name: str, pixels: Tensor, **options: Any) -> dict[str, Any]:
    model = _model(name, num_classes=4, **options)
    maps = model.features(pixels)
    return {"logits": model(pixels).tolist(), "maps": [_fingerprint(features) for features in maps]}


def _pretraining(pixels: Tensor, **options: Any) -> dict[str, Any]:
    mae = _model("mae_hiera_test_8x64", drop_path_rate=0.2, **options).train()
    keep_mask = random_keep_mask(2, mae.num_mask_units, 0.75, seeds=[3, 4])
    output = mae(pixels, keep_mask=keep_mask, draws=mae.draw(2, torch.Generator().manual_seed(5)))
    output.loss.backward()
    return {
        "loss": output.loss.item(),
        "visible_units": keep_mask.nonzero()[:, 1].view(2, 4).tolist(),
        "prediction": _fingerprint(output.prediction),
        "target": _fingerprint(output.target),
        "patch_embedding_gradient": _fingerprint(mae.encoder.patch_embed.weight.grad),
    }


def _model(name: str, **options: Any) -> nn.Module:
    model = create_model(name, **options)
    randomize(model)
    return model.eval()


def _fingerprint(tensor: Tensor | None) -> list[float]:
    """Mean, deviation, and the projection on a fixed wave, which notices an exchange of values."""
    assert tensor is not None
    flat = tensor.detach().double().flatten()
    wave = torch.cos(torch.arange(flat.numel(), dtype=torch.float64) * 0.7)
    return [flat.mean().item(), flat.std().item(), (flat * wave).mean().item()]


def main() -> None:
    """Write golden.json."""
    GOLDEN.write_text(json.dumps(golden_values(), indent=1) + "\n")


if __name__ == "__main__":
    main()
