"""Decoding and augmenting images: prepared set to normalised batch, against Pillow in a torch `DataLoader`, `datasets`.

Pieces of scikit-learn's two photographs, 500×375 JPEG; random crop [0.2, 1] to 224 px, bicubic with antialiasing, flip,
ImageNet's normalisation. Ours are the stages of the training stream (reader, isolated child, micro-batch) without Ray;
the others have one worker, as ours has one child. Images per CPU second of all processes of each, so that other work
on the machine counts little, and per second on the clock; turns alternate, medians. What all of them cannot do without,
Pillow's decoding and resizing, is measured beside them.
"""

from __future__ import annotations

import math
import os
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hiera_video.augmentation.basic import AugmentConfig, augment, model_input
from hiera_video.models.config import EncoderConfig
from hiera_video.models.presets import model_config
from pipeline.datasets.order import StreamOrder
from pipeline.datasets.train import DecodeMicroBatches, ReadMicroBatches
from pipeline.decode.config import DecodeConfig
from pipeline.manifest.formats import ManifestConfig
from pipeline.prepare.run import PrepareSettings
from pipeline.sampling import ViewConfig
from pipeline.shards.reader import PreparedSet, open_prepared
from pipeline.shards.writer import StoreConfig
from pipeline.transcode.config import TranscodeConfig
from tests.support.pictures import photograph
from tests.support.prepared import prepare

try:
    import datasets
except ModuleNotFoundError:  # no dependency: a peer that is measured where it is installed
    datasets = None

SIZE, SIDE, MICRO_BATCH = (500, 375), 224, 16
SCALE, ASPECT = (0.2, 1.0), (0.75, 4 / 3)
VIEW = ViewConfig(num_frames=1, size=SIDE, media="image", interpolation="bicubic", crop_scale=SCALE, crop_aspect=ASPECT)
MODEL = model_config("mae_hiera_base_224")
GOALS = {"a DataLoader with Pillow": 0.9, "datasets with the same transform": 1.5}
Round = Callable[[], float]
"""Goes over all images once and returns the CPU seconds that it took, of all of its processes."""


class Rate(NamedTuple):
    """Medians over the turns."""

    cpu: float
    """Images per CPU second."""
    clock: float
    """Images per second on the clock."""


def run(quick: bool) -> dict[str, Any]:
    """Images per CPU second of each, and how many times ours are as many as each other's."""
    torch.set_num_threads(1)
    count, turns = (64, 2) if quick else (512, 7)
    figures: dict[str, Any] = {"images": count, "load_average_before": round(os.getloadavg()[0], 2)}
    with tempfile.TemporaryDirectory() as folder:
        paths = write_pieces(Path(folder) / "images", count)
        rounds = {"ours": our_round(_prepared(Path(folder)), count)}
        rounds["Pillow alone, decoding and resizing"] = pillow_round(paths)
        rounds["a DataLoader with Pillow"] = loader_round(PillowImages(paths))
        if datasets is None:
            figures["datasets"] = "not installed: pip install datasets, in an environment of its own"
        else:
            rounds["datasets with the same transform"] = loader_round(huggingface_images(paths))
        rates = _rates(rounds, count, turns)
    for name, rate in rates.items():
        figures[name] = {"images per CPU second": round(rate.cpu, 1), "on the clock": round(rate.clock, 1)}
        if name in GOALS:
            figures[name] |= {"ours against it": round(rates["ours"].cpu / rate.cpu, 2), "goal": GOALS[name]}
            figures[name] |= {"on the clock, ours against it": round(rates["ours"].clock / rate.clock, 2)}
    return figures


def _rates(rounds: dict[str, Round], count: int, turns: int) -> dict[str, Rate]:
    """The first turn, which opens files and processes, does not count."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in rounds}
    for turn in range(turns + 1):
        for name, one in rounds.items():
            began = time.perf_counter()
            spent = one()
            if turn:
                seconds[name].append((spent, time.perf_counter() - began))
    medians = {name: map(statistics.median, zip(*spent, strict=True)) for name, spent in seconds.items()}
    return {name: Rate(*(count / median for median in both)) for name, both in medians.items()}


def write_pieces(folder: Path, count: int) -> list[Path]:
    """JPEG files of an ordinary size."""
    folder.mkdir(parents=True)
    draw, paths = random.Random(0), []
    for number in range(count):
        with Image.open(photograph(("china.jpg", "flower.jpg")[number % 2])) as picture:
            left, top = draw.randint(0, picture.width - SIZE[0]), draw.randint(0, picture.height - SIZE[1])
            paths.append(folder / f"{number:05d}.jpg")
            picture.crop((left, top, left + SIZE[0], top + SIZE[1])).save(paths[-1], quality=90)
    return paths


def _prepared(folder: Path) -> PreparedSet:
    manifest = ManifestConfig(media="image", val_share=0)
    settings = PrepareSettings(manifest, TranscodeConfig(), DecodeConfig(), StoreConfig(), seed=0)
    prepare(str(folder / "images"), str(folder / "set"), settings, workers=0)
    return open_prepared(str(folder / "set"))


def our_round(prepared: PreparedSet, count: int) -> Round:
    """The stages of the training stream one after the other, and the device's part on the CPU."""
    selection = prepared.selection("train", False)
    order = partial(StreamOrder, seed=0, digest=prepared.digest, repeats=1, window_groups=4)
    read = ReadMicroBatches(selection, order, MICRO_BATCH, prepared.classes)
    decode = DecodeMicroBatches(VIEW, DecodeConfig(), 0, frozenset())

    def one() -> float:
        before = _cpu_seconds(decode)
        for rows in read({"start": np.array([0]), "stop": np.array([count])}):
            frames = torch.from_numpy(decode(rows)["video"].combine_chunks().to_numpy()[0])
            assert normalised(frames, MODEL).shape == (MICRO_BATCH, 3, SIDE, SIDE)
        return _cpu_seconds(decode) - before

    return one


def normalised(frames: Tensor, config: EncoderConfig) -> Tensor:
    """uint8 ``[B, 1, H, W, 3]`` → what the model takes, ``[B, 3, H, W]``, flipped or not."""
    return model_input(augment(frames, AugmentConfig(horizontal_flip=0.5)), config)


def _cpu_seconds(decode: DecodeMicroBatches | None = None) -> float:
    """Of this process, its children that have ended, and the decoder's living one."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    child = decode.decoder.decoder._child if decode else None
    return time.process_time() + ended.ru_utime + ended.ru_stime + (child._cpu_seconds() if child else 0.0)


class PillowImages(Dataset[Tensor]):
    """The loop that people write."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as picture:
            return transform(picture)


def transform(picture: Image.Image) -> Tensor:
    """torchvision's RandomResizedCrop, flip, ToTensor and Normalize, by Pillow and torch."""
    picture = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=_box(*picture.size))
    if random.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float().div_(255)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MODEL.pixel_mean, MODEL.pixel_std))
    return pixels.sub_(mean).div_(std)


def _box(width: int, height: int) -> tuple[int, int, int, int]:
    for _ in range(10):
        area = width * height * random.uniform(*SCALE)
        ratio = math.exp(random.uniform(*(math.log(bound) for bound in ASPECT)))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if wide <= width and high <= height:
            left, top = random.randint(0, width - wide), random.randint(0, height - high)
            return left, top, left + wide, top + high
    return 0, 0, width, height


def huggingface_images(paths: Sequence[Path]) -> Any:
    """The same files as a set of `datasets`, decoded by it."""
    images = datasets.Dataset.from_dict({"image": [str(path) for path in paths]})
    return images.cast_column("image", datasets.Image()).with_transform(_of_huggingface)


def _of_huggingface(batch: dict[str, Any]) -> dict[str, Any]:
    return {"image": [transform(picture) for picture in batch["image"]]}


def pillow_round(paths: Sequence[Path]) -> Round:
    """No loader, no tensors: what is left when everything around Pillow costs nothing."""

    def one() -> float:
        before = _cpu_seconds()
        for path in paths:
            with Image.open(path) as picture:
                picture.crop(_box(*picture.size)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        return _cpu_seconds() - before

    return one


def loader_round(images: Any) -> Round:
    """One epoch by one worker; its CPU seconds are counted when it has ended."""

    def one() -> float:
        before = _cpu_seconds()
        loader: Iterator[Any] = iter(DataLoader(images, MICRO_BATCH, shuffle=True, num_workers=1))
        for _ in loader:
            pass
        del loader
        return _cpu_seconds() - before

    return one
