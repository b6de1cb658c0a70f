"""Tagging a large collection: planning an S3 Inventory of ten million, and finding nothing new among 100,000 files.

The driver alone, in processes of their own; memory is the peak of the resident size. Files are empty and objects do
not exist, so nothing is decoded: what is measured is listing, comparing and planning.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hiera_video.models.presets import create_model
from hiera_video.weights.checkpoint_files import save_model
from jobs.runs.tracking_config import TrackingConfig
from jobs.scoring.classifier import find_classifier
from jobs.tagging.config import ScoringPlan, TagConfig, plan_scoring
from jobs.tagging.tasks import cut_into_tasks
from pipeline.tagging.reader import KnownVideos
from pipeline.tagging.source import list_source, new_or_changed
from pipeline.tagging.tables import create_tables, total
from tests.support.tag_output import written

VIDEOS_AT_ONCE = 50_000
VIDEOS_PER_TASK = 16


def run(quick: bool) -> dict[str, Any]:
    """Figures by name; see the module's docstring for what they are of."""
    with tempfile.TemporaryDirectory() as name:
        return _planning(Path(name), 100_000 if quick else 10_000_000) | _rerun(Path(name), 1_000 if quick else 100_000)


def _planning(folder: Path, rows: int) -> dict[str, Any]:
    write_inventory(folder / "inventory", rows)
    code = f"from tests.benchmarks.bench_tag_plan import plan_inventory; plan_inventory({str(folder)!r})"
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return {f"plan an inventory of {rows:,}": json.loads(answer.splitlines()[-1])}


def _rerun(folder: Path, files: int) -> dict[str, Any]:
    """Seconds of the program itself over an output that holds every file of the source."""
    (folder / "many").mkdir()
    for number in range(files):
        (folder / "many" / f"{number:06d}.mp4").touch()
    save_model(folder / "w.safetensors", create_model("hiera_test_8x64"))
    keys = {"source": str(folder / "many"), "init": str(folder / "w.safetensors"), "output": str(folder / "held")}
    config = TagConfig(**keys, tracking=TrackingConfig(uri="none"))
    _hold_all(plan_scoring(config, find_classifier(config.init)))
    words = [f"{key}={value}" for key, value in keys.items()]
    command = [sys.executable, "-m", "jobs.tag", *words, "tracking.uri=none"]
    started = time.perf_counter()
    told = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    assert "nothing new" in told, told
    return {f"nothing new among {files:,}": {"wall s": time.perf_counter() - started}}


def write_inventory(folder: Path, rows: int) -> None:
    """An S3 Inventory in Parquet, half a million objects a file."""
    (folder / "data").mkdir(parents=True)
    files = []
    for start in range(0, rows, 500_000):
        numbers = range(start, min(start + 500_000, rows))
        table = pa.table(
            {
                "bucket": ["footage"] * len(numbers),
                "key": [f"camera-{number % 97:02d}/2026/{number:010d}.mp4" for number in numbers],
                "size": [1] * len(numbers),
                "e_tag": [f"{number:032x}" for number in numbers],
            }
        )
        files.append({"key": f"data/{start}.parquet"})
        pq.write_table(table.rename_columns(["bucket", "key", "size", "ETag"]), folder / "data" / f"{start}.parquet")
    manifest = {"destinationBucket": "arn:aws:s3:::lists", "fileFormat": "Parquet", "fileSchema": "", "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def plan_inventory(folder: str) -> None:
    """All of it from the listing to tasks, 50,000 videos at a time."""
    before = peak_mib()
    started = time.perf_counter()
    listing = list_source(f"{folder}/inventory/manifest.json")
    listed = time.perf_counter() - started
    tasks = 0
    for fresh in new_or_changed(listing, KnownVideos(f"{folder}/none"), VIDEOS_AT_ONCE):
        tasks += len(cut_into_tasks(fresh, VIDEOS_PER_TASK))
    seconds = time.perf_counter() - started
    figures = {"tasks": tasks, "listing s": listed, "wall s": seconds, "MiB before": before, "peak MiB": peak_mib()}
    print(json.dumps(figures))


def _hold_all(plan: ScoringPlan) -> None:
    """Commit a row for every file of the source, as a run that found them all empty would."""
    listing, output = list_source(plan.config.source), plan.config.output
    tables = create_tables(output, plan.settings())
    changes = [
        written(output, [(uri, version, "empty") for uri, version in zip(*part.to_pydict().values(), strict=True)])
        for fresh in new_or_changed(listing, KnownVideos(output), 10_000)
        for part in [fresh.select(["uri", "content_version"])]
    ]
    tables.commit(total(changes), {})


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
