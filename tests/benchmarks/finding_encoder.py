"""A small encoder of real clips, trained for a few minutes, for the benchmarks of finding things.

It learns seven of the fifteen classes of UCF15 (a folder named by the variable UCF15, with ``annotations.csv`` of path,
label, split); the other eight stay unseen. Clips are kept in a file, so that they are decoded once.
Legend: N clips, T frames, S pixels of a side.
"""

from __future__ import annotations

import csv
import os
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from hiera_video.augmentation.basic import model_input
from hiera_video.models.hiera import Hiera
from hiera_video.models.presets import create_model
from hiera_video.weights.checkpoint_files import save_model
from pipeline.decode.config import DecodeConfig, TimeView
from pipeline.decode.decoder import IsolatedDecoder
from pipeline.sampling import center_crop

FRAMES, SIDE, STORED_SIDE = 8, 64, 80
OVERRIDES = {"input_size": (FRAMES, SIDE, SIDE), "embed_dim": 16}
SEEN_CLASSES = 7
STEPS, BATCH, PEAK_RATE, SMALLEST_CROP = 1000, 32, 2e-3, 0.5


class Clips(NamedTuple):
    """Decoded clips of several classes."""

    frames: npt.NDArray[np.uint8]
    """``[N, T, S, S, 3]`` with `STORED_SIDE`."""
    labels: npt.NDArray[np.int64]
    """Numbers of the classes in alphabetical order; the first `SEEN_CLASSES` are those that the encoder learns."""
    is_test: npt.NDArray[np.bool_]
    paths: list[str]


def load_clips(folder: Path, kept: Path) -> Clips:
    """All clips of UCF15, decoded or as they were kept."""
    with (folder / "annotations.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = sorted({row["label"] for row in rows})
    if not kept.exists():
        with IsolatedDecoder(DecodeConfig(deadline_seconds=30.0)) as decoder:
            np.save(kept, np.stack([_decoded(decoder, folder / row["path"]) for row in rows]))
    labels = np.array([names.index(row["label"]) for row in rows])
    is_test = np.array([row["split"] != "train" for row in rows])
    return Clips(np.load(kept), labels, is_test, [str(folder / row["path"]) for row in rows])


def _decoded(decoder: IsolatedDecoder, path: Path) -> npt.NDArray[np.uint8]:
    """Two seconds from the middle of a clip, uint8 ``[T, S, S, 3]``."""
    info = decoder.probe(path)
    span = min(2.0, info.duration_seconds)
    start = (info.duration_seconds - span) / 2
    times = start + (np.arange(FRAMES) + 0.5) / FRAMES * span
    return decoder.decode(path, [TimeView(times, center_crop(info.height, info.width), (STORED_SIDE, STORED_SIDE))])[0]


def train_encoder(clips: Clips, file: Path, steps: int) -> None:
    """Train on the training clips of the seen classes and write the classifier as safetensors."""
    torch.manual_seed(0)
    model = create_model("hiera_test_8x64", num_classes=SEEN_CLASSES, **OVERRIDES)
    assert isinstance(model, Hiera)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
    numbers = np.flatnonzero((clips.labels < SEEN_CLASSES) & ~clips.is_test)
    rng, started = np.random.default_rng(0), time.monotonic()
    for step in range(steps):
        drawn = rng.choice(numbers, BATCH)
        logits = model(model_input(_augmented(clips.frames[drawn], rng), model.config))
        loss = functional.cross_entropy(logits, torch.from_numpy(clips.labels[drawn]), label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}, loss {loss.item():.3f}, {time.monotonic() - started:.0f} s", flush=True)
    save_model(file, model.eval())


def _augmented(frames: npt.NDArray[np.uint8], rng: np.random.Generator) -> Tensor:
    """A random part of each clip, scaled to the model's size, half of them mirrored: uint8 ``[B, T, S, S, 3]``."""
    cut = []
    for clip in frames:
        side = int(STORED_SIDE * rng.uniform(SMALLEST_CROP, 1.0))
        top, left = rng.integers(0, STORED_SIDE - side + 1, 2)
        part = torch.from_numpy(clip[:, top : top + side, left : left + side]).permute(0, 3, 1, 2).float()
        part = functional.interpolate(part, (SIDE, SIDE), mode="bilinear")
        part = (part * rng.uniform(0.7, 1.3)).clamp(0, 255)
        cut.append(part.flip(-1) if rng.random() < 0.5 else part)
    return torch.stack(cut).permute(0, 1, 3, 4, 2).to(torch.uint8)


def encoder_file() -> Path:
    """The trained classifier of the seen classes, kept in the folder CACHE."""
    file = cache() / "encoder.safetensors"
    if not file.exists():
        train_encoder(kept_clips(), file, STEPS)
    return file


def kept_clips() -> Clips:
    """`load_clips` of the folder UCF15, kept in the folder CACHE."""
    return load_clips(Path(os.environ["UCF15"]), cache() / "clips.npy")


def cache() -> Path:
    """The folder CACHE; default: below ``build``."""
    folder = Path(os.environ.get("CACHE", "build/finding"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
