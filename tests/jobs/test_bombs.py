"""Small files that become enormous: each ends as a reason or as one message, in little time and memory.

Bounds are of CPU time and memory, never of the clock: a busy machine must not fail a test.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from _pytest.mark import ParameterSet

from hiera_video.weights.checkpoint_files import read_weights
from jobs.core.config import load_config
from jobs.core.errors import UserError
from jobs.core.yaml_text import parse_yaml
from jobs.demo.command import DemoConfig
from jobs.planning.prices import read_prices
from pipeline.decode.config import DecodeConfig, DecodeError, FrameView, ImageView
from pipeline.decode.decoder import IsolatedDecoder
from pipeline.manifest.errors import ManifestError
from pipeline.manifest.formats import read_class_list
from pipeline.manifest.image_readers import read_inaturalist
from pipeline.manifest.packed import read_huggingface, read_webdataset
from pipeline.manifest.readers import read_something
from pipeline.manifest.s3_inventory import inventory_parts
from pipeline.manifest.text_columns import parquet_batches, read_csv
from pipeline.storage.errors import StorageError
from pipeline.storage.records import parse_json
from tests.support import bombs

CPU_SECONDS = 10.0
MORE_BYTES = 2**31
ONE_MESSAGE = (ValueError, ManifestError, StorageError)
VIDEOS: dict[Callable[[Path], Path], str] = {
    bombs.large_picture: "max_pixels",
    bombs.ten_million_frames: "max_frames",
    bombs.two_frames_of_a_year: "max_seconds",
    bombs.many_streams: "not_a_video",
    bombs.boxes_in_boxes: "not_a_video",
    bombs.compressed_index: "not_a_video",
    bombs.repeated_edits: "max_frames",
    bombs.large_attachment: "not_a_video",
}
IMAGES: dict[Callable[[Path], Path], str] = {
    bombs.large_png: "max_image_pixels",
    bombs.png_with_long_text: "damaged",
    bombs.gif_of_many_frames: "max_frames",
    bombs.large_gif: "max_image_pixels",
    bombs.large_webp: "max_image_pixels",
    bombs.large_strip: "max_image_pixels",
}


def _rows(read: Callable[[str], object]) -> Callable[[Path], object]:
    return lambda path: read(str(path))


def _samples(path: Path) -> None:
    for _ in read_webdataset(str(path), "image").batches:
        pass


def _pictures(path: Path) -> None:
    for _ in read_huggingface(str(path)).batches:
        pass


def _list(path: Path) -> None:
    for _ in parquet_batches(str(path)):
        pass


FILES: dict[Callable[[Path], Path], Callable[[Path], object]] = {
    bombs.list_of_many_rows: _rows(read_csv),
    bombs.list_of_one_field: _rows(read_csv),
    bombs.parquet_of_long_texts: _list,
    bombs.parquet_of_many_rows: _list,
    bombs.parquet_of_one_page: _list,
    bombs.parquet_without_pictures: _pictures,
    bombs.long_tar_header: _samples,
    bombs.pickled_bytes: read_weights,
    bombs.old_pickled_bytes: read_weights,
    bombs.pickled_encodings: read_weights,
    bombs.compressed_tensors: read_weights,
    bombs.expanded_tensor: read_weights,
    bombs.long_safetensors_header: read_weights,
}
TEXTS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "deep JSON": (parse_json, b"[" * 10**6 + b"]" * 10**6),
    "a JSON number of a million digits": (parse_json, b"1" * 10**6),
    "deep YAML": (parse_yaml, b"[" * 10**5),
    "a YAML number of a million digits": (parse_yaml, b"a: " + b"1" * 10**6),
}


SLOW = (bombs.large_attachment, bombs.repeated_edits, bombs.gif_of_many_frames, bombs.large_strip)
"""To make, or to read up to the limit: seconds of CPU."""


def _all(kinds: Iterable[Callable[[Path], Path]]) -> list[ParameterSet]:
    slow = dict.fromkeys(SLOW, pytest.mark.faults)
    return [pytest.param(make, id=make.__name__, marks=slow.get(make, ())) for make in kinds]


@contextlib.contextmanager
def bounded(more_bytes: int = MORE_BYTES) -> Iterator[None]:
    """Less CPU than the limit, and no more address space than so much beyond what is used now."""
    used, before = psutil.Process().memory_info().vms, resource.getrlimit(resource.RLIMIT_AS)
    began = time.process_time()
    resource.setrlimit(resource.RLIMIT_AS, (used + more_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.process_time() - began < CPU_SECONDS


@pytest.fixture(scope="module")
def videos() -> Iterator[IsolatedDecoder]:
    with IsolatedDecoder() as decoder:
        yield decoder


@pytest.fixture(scope="module")
def images() -> Iterator[IsolatedDecoder]:
    with IsolatedDecoder(media="image") as decoder:
        yield decoder


def reason_of(decoder: IsolatedDecoder, path: Path, view: FrameView | ImageView) -> str:
    """Of whatever first refuses it: its facts, or its first picture; the child's CPU and memory are bounded, too."""
    before, limits = decoder.cpu_seconds, DecodeConfig()
    with pytest.raises(DecodeError) as refusal:
        look_at(decoder, path, view)
    assert decoder.cpu_seconds - before < CPU_SECONDS
    if decoder._child is not None:
        status = Path(f"/proc/{decoder._child.process_id}/status").read_text()
        assert int(status.partition("VmHWM:")[2].split()[0]) * 1024 < limits.memory_bytes
    return refusal.value.reason


def look_at(decoder: IsolatedDecoder, path: Path, view: FrameView | ImageView) -> None:
    decoder.probe(path)
    decoder.decode(path, [view])


@pytest.mark.parametrize("make", _all(VIDEOS))
def test_a_video_that_is_a_bomb_has_one_reason(
    make: Callable[[Path], Path], videos: IsolatedDecoder, tmp_path: Path
) -> None:
    lost = videos.children_lost
    assert reason_of(videos, make(tmp_path), FrameView(np.array([0]), None, (32, 32))) == VIDEOS[make]
    assert videos.children_lost == lost


@pytest.mark.parametrize("make", _all(IMAGES))
def test_an_image_that_is_a_bomb_has_one_reason(
    make: Callable[[Path], Path], images: IsolatedDecoder, tmp_path: Path
) -> None:
    lost = images.children_lost
    assert reason_of(images, make(tmp_path), ImageView(None, (32, 32))) == IMAGES[make]
    assert images.children_lost == lost


@pytest.mark.parametrize("make", _all(FILES))
def test_a_file_that_is_a_bomb_is_one_message(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path)
    with bounded(), pytest.raises(ONE_MESSAGE) as refusal:
        FILES[make](path)
    assert path.name in str(refusal.value)
    assert "malloc" not in str(refusal.value)  # it is refused, and no memory is asked for


HUGE: dict[str, Callable[[str], object]] = {
    "train.json": read_inaturalist,
    "labels.json": lambda path: read_something(path.rpartition("/")[0]),
    "classes.txt": read_class_list,
    "names.json": read_class_list,
    "manifest.json": lambda path: next(iter(inventory_parts(path))),
    "recipe.yaml": lambda path: load_config(DemoConfig, "demo", [path]),
    "prices.yaml": lambda path: read_prices(path, "h100"),
    "list.csv": read_csv,
}


@pytest.mark.parametrize("name", HUGE)
def test_a_text_larger_than_memory_is_one_message(name: str, tmp_path: Path) -> None:
    path = bombs.sparse_text(tmp_path / name)
    with bounded(), pytest.raises((*ONE_MESSAGE, UserError)) as refusal:
        HUGE[name](str(path))
    assert str(tmp_path) in str(refusal.value)
    assert "malloc" not in str(refusal.value)


def test_annotations_that_never_end_are_one_message(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/dev/zero")
    for endless in ("/dev/zero", str(tmp_path / "fifo"), str(tmp_path / "link")):
        with bounded(), pytest.raises((*ONE_MESSAGE, UserError), match=endless):
            read_class_list(endless)


@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_that_is_a_bomb_is_one_message(kind: str) -> None:
    parse, content = TEXTS[kind]
    with bounded(), pytest.raises(Exception, match=r"deep|digits|expected") as refusal:
        parse(content)
    assert isinstance(refusal.value, ValueError | yaml.YAMLError)
