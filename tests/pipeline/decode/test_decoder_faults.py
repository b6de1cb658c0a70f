"""Damage, death and bad weather: nothing fails for a video, nothing hangs past its deadline, nothing is lost."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.decode.config import DecodeConfig, DecodeError, FrameView
from pipeline.decode.decoder import IsolatedDecoder
from pipeline.shards.reader import PreparedSet, open_prepared
from pipeline.storage import s3 as object_storage
from pipeline.storage.files import join, list_files, read_bytes, write_bytes, write_if_absent
from tests.pipeline.decode.test_decoder import refused
from tests.support.faulty_proxy import FAULTS, faulty_proxy
from tests.support.numbered import write_numbered
from tests.support.s3_server import set_s3_environment

pytestmark = pytest.mark.faults

FUZZED_FILES = 300
DEADLINE_SECONDS = 5.0


def mutations(original: bytes, draw: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Damage of every kind: the header, anywhere in the file, the index, a cut end, a hole of zeros."""
    size = len(original)
    index = max(0, original.find(b"moov"))
    kinds = {
        "header": draw.integers(0, min(64, size), 6),
        "anywhere": draw.integers(0, size, 50),
        "one byte": draw.integers(0, size, 1),
        "index": draw.integers(index, min(index + 4000, size), 20)
        if index >= 0
        else draw.integers(0, min(size, 4000), 20),
    }
    for kind, places in kinds.items():
        damaged = bytearray(original)
        for place in places:
            damaged[place] ^= int(draw.integers(1, 256))
        yield kind, bytes(damaged)
    yield "cut", original[: int(draw.integers(1, size))]
    hole = int(draw.integers(0, size))
    yield "hole", original[:hole] + bytes(min(2000, size - hole)) + original[hole + 2000 :]


def sources(folder: Path) -> list[Path]:
    """One small video of every container and codec: the real clips where they are, else rendered ones."""
    clips = Path(os.environ.get("CLIPS", Path(__file__).resolve().parents[4] / "shared" / "clips"))
    found: dict[str, Path] = {}
    for path in sorted(clips.glob("*/*"), key=lambda path: path.stat().st_size):
        if path.parent.name != "trouble" and path.stat().st_size > 20_000:
            found.setdefault(path.suffix.lower(), path)
    rendered = [write_numbered(folder / f"rendered{suffix}") for suffix in (".mp4", ".webm", ".avi", ".mkv")]
    return [*found.values(), *rendered]


@pytest.mark.parametrize("backend", ["decord", "pyav"])
def test_fuzzed_files_end_as_frames_or_a_reason(backend: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    originals = sources(tmp_path)
    outcomes: Counter[str] = Counter()
    view = FrameView(np.arange(0, 16, 2), None, (32, 32))
    path = tmp_path / "fuzzed"
    with IsolatedDecoder(DecodeConfig(backend=backend, deadline_seconds=DEADLINE_SECONDS)) as decoder:  # type: ignore[arg-type]
        while outcomes.total() < FUZZED_FILES:
            for original in originals:
                for _, content in mutations(original.read_bytes(), draw):
                    path.write_bytes(content)
                    began = time.monotonic()
                    try:
                        (clip,) = decoder.decode(path, [view])
                        assert clip.shape == (8, 32, 32, 3)
                        outcomes["frames"] += 1
                    except DecodeError as error:
                        outcomes[error.reason] += 1
                    assert time.monotonic() - began < 2 * DEADLINE_SECONDS + 10  # two tries, and starting a child
        assert decoder.decode(originals[-1], [view])[0].any()
    assert outcomes["frames"] > 0
    assert outcomes.total() - outcomes["frames"] > FUZZED_FILES / 10
    print(dict(outcomes), "children lost:", decoder.children_lost)


@pytest.mark.parametrize(("changed_bytes", "least_share"), [(50, 0.99), (8, 0.99), (1, 0.95)])
def test_validation_flags_what_changes_the_frames(tmp_path: Path, changed_bytes: int, least_share: float) -> None:
    """H.264 files with changed bytes whose frames differ are refused; some single bytes decode as another picture
    without any error, which no decoder can tell."""
    original_path = write_numbered(tmp_path / "original.mp4", 40)
    original = original_path.read_bytes()
    start, end = original.index(b"mdat") + 4, original.index(b"moov") - 8
    draw = np.random.default_rng(1)
    view = FrameView(np.arange(40), None, (64, 96))
    differing = flagged = 0
    with IsolatedDecoder(DecodeConfig(backend="pyav")) as decoder:
        (intact,) = decoder.decode(original_path, [view])
        for _ in range(150):
            damaged = bytearray(original)
            for place in draw.integers(start, end, changed_bytes):
                damaged[place] ^= int(draw.integers(1, 256))
            path = tmp_path / "damaged.mp4"
            path.write_bytes(damaged)
            changed = True
            with contextlib.suppress(DecodeError):
                changed = not np.array_equal(decoder.decode(path, [view])[0], intact)
            differing += changed
            flagged += changed and refused(decoder, path)
    print(f"{changed_bytes} bytes changed: {flagged} of {differing} flagged")
    assert differing > 50
    assert flagged >= least_share * differing


def test_a_bomb_is_refused_at_once_and_small(tmp_path: Path) -> None:
    """A picture near FFmpeg's own limit of 16384 x 16384 in 50 KB; others are in `tests/jobs/test_bombs.py`."""
    with IsolatedDecoder() as decoder:
        assert reason_of(decoder, _large_picture(tmp_path)) == "max_pixels"
        assert decoder.cpu_seconds < 2
        assert _peak_bytes(decoder) < 2**30


def reason_of(decoder: IsolatedDecoder, path: Path) -> str:
    """Why the first frame cannot be had; '' when it can."""
    try:
        decoder.decode(path, [FrameView(np.array([0]), None, (32, 32))])
    except DecodeError as error:
        return error.reason
    return ""


def _large_picture(folder: Path) -> Path:
    path = folder / "large.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "tune": "zerolatency"})
        stream.height, stream.width, stream.pix_fmt = 16000, 16000, "yuv420p"
        container.mux(stream.encode(av.VideoFrame(16000, 16000, "yuv420p")))
        container.mux(stream.encode(None))
    return path


def _peak_bytes(decoder: IsolatedDecoder) -> int:
    assert decoder._child is not None
    status = Path(f"/proc/{decoder._child.process_id}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def test_object_storage_on_a_bad_day(
    prepared: PreparedSet,
    s3_server: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A fifth of all requests fail, stall or break off: everything written is read back, once, and whole."""
    set_s3_environment(monkeypatch, s3_server)
    monkeypatch.setattr(object_storage, "READ_TIMEOUT_SECONDS", 2)
    object_storage.s3_client().create_bucket(Bucket="weather")
    with faulty_proxy(s3_server, share=0.2, stall_seconds=3) as (url, counts):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        contents = {f"s3://weather/{number:03d}.bin": os.urandom(1000 * number + 1) for number in range(60)}
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda item: write_bytes(*item), contents.items()))
            assert all(pool.map(lambda uri: read_bytes(uri) == contents[uri], contents))
            won = list(pool.map(lambda number: write_if_absent("s3://weather/commit", b"%d" % number), range(8)))
        assert sum(won) == 1
        listed = list_files("s3://weather", (".bin",))
        assert dict(zip(listed["uri"].to_pylist(), listed["size"].to_pylist(), strict=True)) == {
            uri: len(content) for uri, content in contents.items()
        }
        for file in list_files(prepared.uri)["uri"].to_pylist():
            write_bytes(join("s3://weather/set", file.removeprefix(prepared.uri)), read_bytes(file))
        there = open_prepared("s3://weather/set")
        for split in ("train", "all"):
            assert there.num_clips(split) == prepared.num_clips(split)
        assert read_bytes("s3://weather/commit") == b"%d" % won.index(True)
    assert all(counts[fault] for fault in FAULTS)
