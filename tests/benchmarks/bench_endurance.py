"""The decoder over many damaged files, and its memory over a long time.

Damage: every container of `CLIPS` (a folder of real clips) and rendered ones, header, index, single bytes, holes, cut
ends. `SOAK_SECONDS` (default 240, in the quick run 20) is how long it decodes for the memory figures; 3600 is the hour
that the project promises.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.decode.config import DecodeConfig, DecodeError, FrameView
from pipeline.decode.decoder import IsolatedDecoder
from tests.pipeline.decode.test_decoder_faults import mutations, sources

FILES = 10_000
DEADLINE_SECONDS = 5.0
SIZE = (112, 112)


def run(quick: bool) -> dict[str, Any]:
    """Outcomes and the longest answer for damaged files; growth of child and parent over the soak."""
    with tempfile.TemporaryDirectory() as folder:
        originals = sources(Path(folder))
        return _fuzz(originals, Path(folder) / "fuzzed", 600 if quick else FILES) | _soak(
            originals, float(os.environ.get("SOAK_SECONDS", 20 if quick else 240))
        )


def _fuzz(originals: list[Path], path: Path, files: int) -> dict[str, Any]:
    draw = np.random.default_rng(0)
    outcomes: Counter[str] = Counter()
    longest = 0.0
    with IsolatedDecoder(DecodeConfig(deadline_seconds=DEADLINE_SECONDS)) as decoder:
        while outcomes.total() < files:
            for original in originals:
                for _, content in mutations(original.read_bytes(), draw):
                    path.write_bytes(content)
                    began = time.monotonic()
                    outcomes[_outcome(decoder, path)] += 1
                    longest = max(longest, time.monotonic() - began)
        lost = decoder.children_lost
    return {
        "damaged files": outcomes.total(),
        "outcomes": ", ".join(f"{reason} {count}" for reason, count in outcomes.most_common()),
        "children killed or died": lost,
        "longest answer, seconds": longest,
    }


def _outcome(decoder: IsolatedDecoder, path: Path) -> str:
    try:
        decoder.decode(path, [FrameView(np.arange(0, 16, 2), None, SIZE)])
    except DecodeError as error:
        return error.reason
    return "frames"


def _soak(originals: list[Path], seconds: float) -> dict[str, Any]:
    """Decode without end; memory after a fifth of the time against memory at the end."""
    began = time.monotonic()
    warm = 0.0
    decoded = 0
    with IsolatedDecoder() as decoder:
        peak = 0.0
        while time.monotonic() - began < seconds:
            for original in originals:
                decoded += _outcome(decoder, original) == "frames"
            peak = max(peak, _child_mib(decoder))
            if not warm and time.monotonic() - began > seconds / 5:
                warm, warm_parent, peak = peak, _mib(os.getpid()), 0.0
        return {
            "soak, seconds": seconds,
            "soak, videos decoded": decoded,
            "child MiB, warm": warm,
            "child MiB, most afterwards": peak,
            "child growth": peak / warm - 1,
            "parent growth": _mib(os.getpid()) / warm_parent - 1,
        }


def _child_mib(decoder: IsolatedDecoder) -> float:
    return _mib(decoder._child.process_id) if decoder._child else 0.0


def _mib(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
