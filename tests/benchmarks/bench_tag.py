"""Tagging: the chain against its bare parts and a plain script, and over simulated nodes.

Windows of 16 frames at 224 px from H.264 MP4s of `CLIPS` (else rendered ones), Base with random weights. All rates of
one run on the same cores. *Bare* rates: the stage alone in two processes of one thread each. *Due*: 1 / (1 / decode +
1 / model) where both want the cores, the slower of the two where the model sleeps. The plain script decodes with decord
and runs the official package in float32, one video after another, with all cores. A chain's rate: windows after its
first block over the time since then, to the very end.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import decord
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from ray.cluster_utils import Cluster

from hiera_video.augmentation.basic import normalize_video
from jobs.runs.tracking import TrackingConfig
from jobs.scoring import stage as scoring_stage
from jobs.scoring.classifier import find_classifier
from jobs.scoring.stage import Answers, ScoreViews, best_classes
from jobs.tagging import pipeline as tagging_pipeline
from jobs.tagging.config import ScoringPlan, TagConfig, plan_scoring
from jobs.tagging.pipeline import WINDOW_COLUMNS, tagging_graph
from pipeline.decode.config import DecodeConfig
from pipeline.sampling import center_crop
from pipeline.storage.files import content_version
from pipeline.tagging.stages import DecodeWindows, ProbeVideos
from pipeline.tagging.windows import PROBED_SCHEMA, plan_units, video_id
from tests.benchmarks.bench_pipeline import collect_videos
from tests.support.official import official_model

PRESET = "hiera_base_16x224"
BATCH = 4  # of Base on a CPU
SLEEPING_BATCH = 16
BATCHES_PER_CHUNK = 8
WINDOW_SECONDS = 2.0
PROCESSES = 2
SLEEP_SECONDS = 0.02  # of the sleeping stages, a window
NODE_CPUS = 2
SIZE = 224
SMALL = (16, 32, 32)  # windows of sleeping stages over several nodes: these cores could not copy larger ones
Scores = dict[tuple[int, int], npt.NDArray[np.float32]]


def run(quick: bool) -> dict[str, Any]:
    """Figures by name; see the module's docstring for what they are of."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        collect_videos(folder / "videos")
        model, plans = _plans(folder, quick)
        videos = _probed(sorted((folder / "videos").iterdir()))
        units = plan_units(videos, plans["fp32"].views.grid, BATCH * BATCHES_PER_CHUNK)
        decode = _bare_rate("decode", plans["fp32"], units)
        figures: dict[str, Any] = {"videos": len(videos), "windows": _count(units)}
        figures |= _with_base(model, plans, units, decode)
        figures |= _with_a_sleeping_model(plans["fp32"], videos, decode, 200 if quick else 800)
        figures |= _scaling(plans["fp32"], 6 if quick else 20)
    return figures


def _count(units: pa.Table) -> int:
    return int(pc.sum(units["num_windows"]).as_py())


def _plans(folder: Path, quick: bool) -> tuple[torch.nn.Module, dict[str, ScoringPlan]]:
    """The official model, and a plan for each precision with the same weights."""
    model = official_model(PRESET, **({"stages": (1, 1, 2, 1)} if quick else {})).eval()
    path = folder / f"{PRESET}.pth"
    torch.save({"model_state": model.state_dict()}, path)
    overrides: dict[str, Any] = {"model": PRESET, "model_overrides": {"stages": (1, 1, 2, 1)}} if quick else {}
    plans = {}
    for precision in ("fp32", "bf16"):
        config = TagConfig(
            source=str(folder), init=str(path), output=str(folder), window_seconds=WINDOW_SECONDS,
            hop_seconds=WINDOW_SECONDS, batch_size=BATCH, precision=precision,  # type: ignore[arg-type]
            tracking=TrackingConfig(uri="none"), **overrides,  # type: ignore[arg-type]
        )  # fmt: skip
        plans[precision] = plan_scoring(config, find_classifier(config.init, config.public_weights))
    return model, plans


def _probed(paths: Sequence[Path]) -> pa.Table:
    rows = [
        {"video_id": video_id(str(path), version), "uri": str(path), "content_version": version, "status": "ok"}
        | {"message": ""}
        for path in paths
        for version in [content_version(str(path))]
    ]
    return ProbeVideos(DecodeConfig())(pa.Table.from_pylist(rows, schema=PROBED_SCHEMA))


def _with_base(
    model: torch.nn.Module, plans: Mapping[str, ScoringPlan], units: pa.Table, decode: float
) -> dict[str, Any]:
    """The graph against its parts and the plain script, and how far the scores of the same windows lie apart."""
    torch.set_num_threads(os.cpu_count() or 1)
    started = time.perf_counter()
    theirs = _plain_script(model, units, plans["fp32"])
    plain = len(theirs) / (time.perf_counter() - started)
    figures: dict[str, Any] = {"plain script": {"windows/s": plain, "times faster": 1.0}}
    torch.set_num_threads(1)
    for precision, plan in plans.items():
        bare = _bare_rate("model", plan, units)
        answers: list[dict[str, Any]] = []
        with _ray():
            rate = _rate(_noted(_with(plan, top_k=len(plan.weights.classes)), units, answers))
        figures[f"tag, {precision}"] = _row(rate, 1 / (1 / decode + 1 / bare), decode, bare) | {
            "times faster": rate / plain,
            **_differences(answers, theirs),
        }
    return figures


def _with_a_sleeping_model(plan: ScoringPlan, videos: pa.Table, decode: float, windows: int) -> dict[str, Any]:
    """The graph with a model as fast as decoding, and one twice as fast; two decoders."""
    plan = _with(plan, workers=1, decode_workers=PROCESSES, batch_size=SLEEPING_BATCH)
    units = plan_units(videos, plan.views.grid, SLEEPING_BATCH * BATCHES_PER_CHUNK)
    units = _repeated(units, -(-windows // _count(units)))
    figures: dict[str, Any] = {}
    with _ray():
        for seconds in (1 / decode, 0.5 / decode):
            with _replaced(scoring_stage, "ScoreViews", sleeping_model(seconds)):
                rate = _rate(_noted(plan, units, []))
            name = f"chain, model sleeps {seconds * 1e3:.0f} ms a window"
            figures[name] = _row(rate, min(decode, 1 / seconds), decode, 1 / seconds)
    return figures


def _repeated(units: pa.Table, times: int) -> pa.Table:
    """The same units again and again, in chunks of their own."""
    place, chunks = units.column_names.index("chunk"), units["chunk"].to_numpy()
    shift = chunks.max() + 1
    return pa.concat_tables(units.set_column(place, "chunk", pa.array(chunks + k * shift)) for k in range(times))


def _row(rate: float, due: float, decode: float, model: float) -> dict[str, Any]:
    return {"bare decode/s": decode, "bare model/s": model, "windows/s": rate, "of what is due": rate / due}


def _with(plan: ScoringPlan, **changes: Any) -> ScoringPlan:
    fields = {name: getattr(plan.config, name) for name in plan.config.__dataclass_fields__} | changes
    return plan_scoring(TagConfig(**fields), plan.weights)


def _bare_rate(kind: str, plan: ScoringPlan, units: pa.Table) -> float:
    """Windows a second of one stage in two processes at once."""
    with tempfile.TemporaryDirectory() as folder:
        torch.save((plan, units), f"{folder}/job.pt")
        call = f"from tests.benchmarks.bench_tag import bare; bare({kind!r}, {folder!r})"
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", call], stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
            for _ in range(PROCESSES)
        ]
        return sum(float(process.communicate()[0].split()[-1]) for process in processes)


def bare(kind: str, folder: str) -> None:
    """Print the windows a second of one stage alone; a process of `_bare_rate`."""
    plan, units = torch.load(f"{folder}/job.pt", weights_only=False)
    decode = DecodeWindows(plan.config.decode, plan.views, BATCH)
    batch = next(iter(decode(units)))
    if kind == "decode":
        work: Callable[[], int] = lambda: sum(len(batch["video"]) for _ in range(3) for batch in decode(units))  # noqa: E731
    else:
        score = ScoreViews(plan.weights, plan.config.precision, False, WINDOW_COLUMNS, plan.wanted, BATCH)
        work = functools.partial(_score_some, score, batch, 4)
        score(batch)
    Path(folder, f"ready-{os.getpid()}").touch()
    while len(list(Path(folder).glob("ready-*"))) < PROCESSES:
        time.sleep(0.01)
    started = time.perf_counter()
    windows = work()
    print(windows / (time.perf_counter() - started))


def _score_some(score: ScoreViews, batch: dict[str, npt.NDArray[Any]], times: int) -> int:
    return sum(len(score(batch)) for _ in range(times))


def _rate(blocks: Iterator[int]) -> float:
    """Windows a second of blocks that arrive, after the first one."""
    next(blocks)
    started, windows = time.perf_counter(), sum(blocks)
    return windows / (time.perf_counter() - started)


def _noted(plan: ScoringPlan, units: pa.Table, rows: list[dict[str, Any]]) -> Iterator[int]:
    """Windows of each block of the dataset graph; their rows are kept."""
    numbers = units["chunk"].to_numpy()
    chunks = [units.filter(pa.array(numbers == number)) for number in np.unique(numbers)]
    for batch in tagging_graph(chunks, plan).iter_batches(batch_size=None, batch_format="pyarrow"):
        rows += batch.to_pylist()
        yield len(batch)


class SleepingModel:
    """Sleeps instead of scoring."""

    seconds = SLEEP_SECONDS

    def __init__(self, _weights: Any, _precision: str, _gpu: bool, keep: tuple[str, ...], *_: Any) -> None:
        self.keep = keep

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> pa.Table:
        """See `ScoreViews`."""
        time.sleep(self.seconds * len(batch["chunk"]))
        scores = np.ones((len(batch["chunk"]), 1), np.float32)
        return pa.table({name: pa.array(batch[name]) for name in self.keep} | best_classes(scores, Answers(top_k=1)))


def sleeping_model(seconds: float) -> type[SleepingModel]:
    """One that sleeps so long for a window."""
    return type("SleepingSoLong", (SleepingModel,), {"seconds": seconds})


class SleepingDecoder(DecodeWindows):
    """Sleeps instead of decoding."""

    def __call__(self, units: pa.Table) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """See `DecodeWindows`."""
        for unit in units.to_pylist():
            windows = unit["num_windows"]
            time.sleep(SLEEP_SECONDS * windows)
            columns = {name: np.full(windows, unit.get(name, 0)) for name in WINDOW_COLUMNS}
            columns |= {name: np.full(windows, "ok", object) for name in ("status", "message")}
            yield columns | {
                "window_index": np.arange(windows), "video": np.zeros((windows, *self.views.stacked_size, 3), np.uint8),
            }  # fmt: skip


@contextmanager
def _replaced(module: ModuleType, name: str, replacement: Any) -> Iterator[None]:
    """Another class as a stage of the dataset graph."""
    original = getattr(module, name)
    setattr(module, name, replacement)
    try:
        yield
    finally:
        setattr(module, name, original)


def _plain_script(model: torch.nn.Module, units: pa.Table, plan: ScoringPlan) -> Scores:
    """(unit, window) → scores: decord's frames, the middle square, OpenCV, the official model."""
    scores = {}
    for unit in units.to_pylist():
        top, left, height, width = center_crop(unit["height"], unit["width"])
        shrink = 2 ** int(np.log2(max(1.0, min(height, width) / SIZE)))
        reader = decord.VideoReader(
            unit["uri"], num_threads=1, height=unit["height"] // shrink, width=unit["width"] // shrink
        )
        starts = reader.get_frame_timestamp(range(len(reader)))[:, 0]
        box = (slice(None), *(slice(a // shrink, (a + n) // shrink) for a, n in ((top, height), (left, width))))
        for index in range(unit["first_window"], unit["first_window"] + unit["num_windows"]):
            (view,) = plan.views.of(unit, index)
            frames = np.searchsorted(starts, view.times_seconds + 1e-6, "right") - 1
            pictures = reader.get_batch(frames).asnumpy()[box]
            small = np.stack([cv2.resize(picture, (SIZE, SIZE)) for picture in pictures])
            scores[unit["unit_id"], index] = _official(model, small)
    return scores


@torch.no_grad()
def _official(model: torch.nn.Module, video: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return np.asarray(model(normalize_video(torch.from_numpy(video)[None]))[0].numpy())


def _differences(answers: Sequence[Mapping[str, Any]], theirs: Scores) -> dict[str, float]:
    """Share of windows with the same best class, and the largest difference of a score.

    Fresh weights give every class nearly the same score: "logits x 10" says how far apart scores as sure as those of a
    trained classifier would be.
    """
    pairs = []
    for row in answers:
        ours = np.empty(len(row["classes"]))
        ours[row["classes"]] = row["scores"]
        pairs.append((ours, theirs[row["unit_id"], row["window_index"]].astype(float)))
    return {
        "same top-1": float(np.mean([ours.argmax() == other.argmax() for ours, other in pairs])),
        "scores apart": max(float(np.abs(ours - other).max()) for ours, other in pairs),
        "logits x 10": max(float(np.abs(_surer(ours) - _surer(other)).max()) for ours, other in pairs),
    }


def _surer(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    powers: npt.NDArray[np.float64] = (scores / scores.max()) ** 10
    return powers / powers.sum()


def _scaling(plan: ScoringPlan, chunks: int) -> dict[str, Any]:
    """Windows a second of sleeping stages on 1, 2 and 4 simulated nodes of two CPUs, and the share of n times one."""
    figures: dict[str, Any] = {}
    one = 0.0
    for nodes in (1, 2, 4):
        rate = _rate_on(nodes, plan, chunks * nodes)
        one = one or rate
        figures[f"{nodes} nodes"] = {"windows/s": rate, "efficiency": rate / one / nodes}
    return figures


def _rate_on(nodes: int, plan: ScoringPlan, chunks: int) -> float:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": NODE_CPUS, "include_dashboard": False})
    for _ in range(nodes - 1):
        cluster.add_node(num_cpus=NODE_CPUS)
    ray.init(address=cluster.address, log_to_driver=False)
    numbers = np.arange(chunks * BATCHES_PER_CHUNK)
    units = pa.table({
        "chunk": numbers // BATCHES_PER_CHUNK, "unit_id": numbers, "num_windows": np.full(len(numbers), SLEEPING_BATCH),
    })  # fmt: skip
    plan = _with(plan, workers=nodes, decode_workers=nodes, batch_size=SLEEPING_BATCH)
    plan = dataclasses.replace(plan, views=dataclasses.replace(plan.views, input_size=SMALL))
    try:
        with (
            _replaced(tagging_pipeline, "DecodeWindows", SleepingDecoder),
            _replaced(scoring_stage, "ScoreViews", SleepingModel),
        ):
            return _rate(_noted(plan, units, []))
    finally:
        ray.shutdown()
        cluster.shutdown()


@contextmanager
def _ray() -> Iterator[None]:
    ray.init(num_cpus=2 * PROCESSES, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()
