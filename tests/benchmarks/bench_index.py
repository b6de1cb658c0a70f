"""Starting on a set of ten and a hundred million clips: record, index, selection, order and the first micro-batch.

The set is made up: record and index as `prepare` writes them, no shard. Each start is a process of its own; the first
on a machine copies the index into the temporary folder, the second finds it there. `anonymous` is what the process
holds for itself; the rest of `peak` are mapped files, which all processes share and the kernel may drop.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.datasets.order import StreamOrder
from pipeline.datasets.train import WINDOW_GROUPS
from pipeline.shards.index import ROWS_AT_ONCE, Codes, store_index
from pipeline.shards.reader import open_prepared
from pipeline.shards.selection import Selection

CLASSES = [f"class {number:03d}" for number in range(400)]
CLIPS_PER_GROUP, GROUPS_PER_SHARD = 8, 32
SIZES = (10_000_000, 100_000_000)
CLIPS_PER_SHARD = CLIPS_PER_GROUP * GROUPS_PER_SHARD
MIB = 2**20


def run(quick: bool) -> dict[str, Any]:
    """Figures by name; see the module's docstring for what they are of."""
    figures = {}
    for clips in (1_000_000,) if quick else SIZES:
        with tempfile.TemporaryDirectory() as folder:
            index_bytes = write_made_up_set(folder, clips)
            for number, what in enumerate(("first on the machine", "second", "balanced, of 1 % labelled")):
                if number < 2 or clips <= 10_000_000:
                    figures[f"{clips:,} clips, {what}"] = started(folder, balanced=number == 2)
            figures[f"{clips:,} clips, index"] = {"MiB stored": index_bytes / MIB}
    return figures


def made_up_codes(clips: int) -> Iterator[Codes]:
    """Labels and splits: one clip in a hundred has a label, one in twenty is for validation."""
    for start in range(0, clips, ROWS_AT_ONCE):
        draw, size = np.random.default_rng(start), min(ROWS_AT_ONCE, clips - start)
        labels = np.where(draw.random(size) < 0.01, draw.integers(0, len(CLASSES), size), -1)
        yield labels.astype(np.int32), (draw.random(size) < 0.05).astype(np.int16)


def write_made_up_set(folder: str, clips: int) -> int:
    """Record and index of a set of whole shards; the bytes of the index."""
    layout = [CLIPS_PER_GROUP] * GROUPS_PER_SHARD
    shards = [
        {"file": f"shards/v0001-{number:06d}-00.parquet", "rows": CLIPS_PER_SHARD, "row_groups": layout,
         "bytes": 128 * MIB, "sha256": f"{number:064x}"}
        for number in range(-(-clips // CLIPS_PER_SHARD))
    ]  # fmt: skip
    codes = made_up_codes(len(shards) * CLIPS_PER_SHARD)
    entry = store_index(folder, "0001-made-up", shards, codes, ("train", "val"))
    record = {"version": 1, "digest": "d", "classes": CLASSES, "counts": {}, "index": entry, "shards": shards}
    Path(folder, "dataset.json").write_text(json.dumps(record))
    return sum(Path(folder, entry[kind]).stat().st_size for kind in ("clips", "shards"))


def started(folder: str, *, balanced: bool = False) -> dict[str, float]:
    """What a start takes, in a process of its own whose temporary folder is below ``folder``."""
    code = f"from tests.benchmarks.bench_index import start; start({folder!r}, {balanced})"
    temporary = Path(folder, "node")
    temporary.mkdir(exist_ok=True)
    environment = {**os.environ, "TMPDIR": str(temporary)}
    command = [sys.executable, "-c", code]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    figures: dict[str, float] = json.loads(answer.splitlines()[-1])
    return figures


def start(folder: str, balanced: bool) -> None:
    """Up to the row groups of the first micro-batch, and of the first of the next epoch; prints figures."""
    with peak_memory() as peak:
        began = time.perf_counter()
        prepared = open_prepared(folder)
        record = time.perf_counter() - began
        clips = prepared.num_clips("train", labelled_only=balanced)
        index = time.perf_counter() - began
        selection = prepared.selection("train", balanced, balanced)
        selected = time.perf_counter() - began
        window = WINDOW_GROUPS * selection.groups_per_row_group
        order = StreamOrder(selection.clips_per_group, seed=0, digest="d", repeats=1, window_groups=window)
        _locate(selection, order, 0)
        first = time.perf_counter() - began
        _locate(selection, order, order.views_per_epoch)
        total = time.perf_counter() - began
    print(json.dumps({
        "clips": clips, "groups": len(selection.clips_per_group), "record s": record, "index s": index - record,
        "selection s": selected - index, "first micro-batch after s": first, "next epoch s": total - first,
        "anonymous MiB": peak["anonymous"], "peak MiB": peak["resident"],
    }))  # fmt: skip


def _locate(selection: Selection, order: StreamOrder, position: int) -> None:
    """All that is known of a micro-batch before its row groups are read."""
    groups = {selection.group(run.clip) for run in order.runs(position, position + 8)}
    assert all(len(selection.rows(group)) and selection.location(group)[0] for group in groups)


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """The most that this process held at any time, by a look every 20 ms: MiB for itself alone, and in all."""
    peak = {"anonymous": 0.0, "resident": 0.0}
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.02):
            lines = Path("/proc/self/status").read_text().splitlines()
            fields = dict(line.split(":", 1) for line in lines)
            for name, field in (("anonymous", "RssAnon"), ("resident", "VmRSS")):
                peak[name] = max(peak[name], int(fields[field].split()[0]) / 1024)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()
