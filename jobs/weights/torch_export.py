"""A classifier as a `torch.export` program, checked against the model that it was made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from hiera_video.inference import Probabilities
from hiera_video.models.hiera import Hiera

METADATA = "metadata.json"
TRACED_BATCH, CHECKED_BATCHES = 2, (1, 3)  # one that was not traced, too
TOLERANCE = 1e-5


@torch.no_grad()
def export_program(model: Hiera, path: Path, metadata: Mapping[str, str]) -> float:
    """Write a program from uint8 frames to scores ``[B, classes]``, B free, and read it back.

    Frames are ``[B, T, H, W, 3]``; of a model of images ``[B, H, W, 3]``.

    Args:
        metadata: kept inside as ``metadata.json`` (``extra_files`` of `torch.export.load`); the class names are there.

    Returns:
        the largest difference of a score from the model's, on random frames.

    Raises:
        RuntimeError: it is not within 1e-5; the file is not fit for use.
    """
    torch.export.save(traced(model), path, extra_files={METADATA: json.dumps(dict(metadata))})
    return checked(model, torch.export.load(path).module(), TOLERANCE)


def traced(model: Hiera) -> torch.export.ExportedProgram:
    """The program from frames to scores, for any number of views."""
    batch = {0: torch.export.Dim("batch", min=1, max=1024)}
    return torch.export.export(Probabilities(model).eval(), (_frames(model, TRACED_BATCH),), dynamic_shapes=(batch,))


def checked(model: Hiera, exported: Callable[[Tensor], Tensor], tolerance: float) -> float:
    """The largest difference of a score of ``exported`` from the model's, on random frames.

    Raises:
        RuntimeError: it is larger than the tolerance, or not a number.
    """
    scores = Probabilities(model).eval()
    batches = [_frames(model, size) for size in CHECKED_BATCHES]
    difference = max(float((exported(frames) - scores(frames)).abs().max()) for frames in batches)
    if not difference <= tolerance:
        raise RuntimeError(
            f"the exported program differs from the model by {difference:g}, more than {tolerance:g}; this torch "
            "cannot export it"
        )
    return difference


def _frames(model: Hiera, batch: int) -> Tensor:
    shape = (batch, *model.config.input_size, 3)
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(batch), dtype=torch.uint8)
