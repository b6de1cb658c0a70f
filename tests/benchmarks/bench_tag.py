"""Tagging: the chain against its bare parts and a plain script, and over simulated nodes.

Windows of 16 frames at 224 px from H.264 MP4s of `CLIPS` (else rendered ones), Base with random weights. All rates of
one run on the same cores. *Bare* rates: the stage alone in two processes of one thread each. *Due*: 1 / (1 / decode +
1 / model) where both want the cores, the slower of the two where the model sleeps. The plain script decodes with decord
and runs the official package in float32, one video after another, with all cores. A chain's rate: windows after its
first task over the time since then, to the very end, files included.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
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
import ray
import torch
from ray.cluster_utils import Cluster

from hiera_video.augmentation.basic import normalize_video
from jobs.runs.tracking_config import TrackingConfig
from jobs.scoring import scorers
from jobs.scoring.classifier import find_classifier
from jobs.scoring.stage import Answers, ScoreViews, best_classes
from jobs.tagging import pipeline as tagging_pipeline
from jobs.tagging.config import ScoringPlan, TagConfig, plan_scoring
from jobs.tagging.job_log import working_on
from jobs.tagging.pipeline import TagOnRay, task_runner
from jobs.tagging.tasks import cut_into_tasks
from pipeline.decode.decoder import IsolatedDecoder
from pipeline.sampling import center_crop
from pipeline.storage.files import content_version, join
from pipeline.tagging.reader import read_files
from pipeline.tagging.schema import TAGS, tag_schema
from pipeline.tagging.source import PLANNED_SCHEMA
from pipeline.tagging.stages import DecodedWindow, DecodeWindows, Video
from pipeline.tagging.windows import video_id
from tests.benchmarks.bench_pipeline import collect_videos
from tests.support.official import official_model

PRESET = "hiera_base_16x224"
BATCH = 4  # of Base on a CPU
SLEEPING_BATCH = 16
VIDEOS_PER_TASK = 2
WINDOW_SECONDS = 2.0
PROCESSES = 2
SLEEP_SECONDS = 0.02  # of the sleeping stages, a window
NODE_CPUS = 2
SIZE = 224
NUMBERED_SCHEMA = PLANNED_SCHEMA.append(pa.field("video_id", pa.int64()))
"""The same video may come several times, under ids of its own."""
SMALL = (16, 32, 32)  # windows of sleeping stages over several nodes: these cores could not copy larger ones
Scores = dict[tuple[int, int], npt.NDArray[np.float32]]


def run(quick: bool) -> dict[str, Any]:
    """Figures by name; see the module's docstring for what they are of."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        collect_videos(folder / "videos")
        model, plans = _plans(folder, quick)
        videos = _listed(sorted((folder / "videos").iterdir()))
        decode, windows = _bare_rate("decode", plans["fp32"], videos), _count(plans["fp32"], videos)
        figures: dict[str, Any] = {"videos": len(videos), "windows": windows}
        figures |= _with_base(model, plans, videos, decode)
        times = -(-(200 if quick else 800) // windows)
        figures |= _with_a_sleeping_model(plans["fp32"], _repeated(videos, times), decode)
        figures |= _scaling(plans["fp32"], 48 if quick else 160)
    return figures


def _count(plan: ScoringPlan, videos: pa.Table) -> int:
    decode = DecodeWindows(plan.config.decode, plan.views)
    return sum(window.frames is not None for video in videos.to_pylist() for window in decode(video))


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
            hop_seconds=WINDOW_SECONDS, batch_size=BATCH, videos_per_task=VIDEOS_PER_TASK, precision=precision,  # type: ignore[arg-type]
            tracking=TrackingConfig(uri="none"), **overrides,  # type: ignore[arg-type]
        )  # fmt: skip
        plans[precision] = plan_scoring(config, find_classifier(config.init, config.public_weights))
    return model, plans


def _listed(paths: Sequence[Path]) -> pa.Table:
    rows = [
        {"video_id": video_id(str(path), version), "uri": str(path), "content_version": version}
        for path in paths
        for version in [content_version(str(path))]
    ]
    return pa.Table.from_pylist(rows, schema=NUMBERED_SCHEMA)


def _with_base(
    model: torch.nn.Module, plans: Mapping[str, ScoringPlan], videos: pa.Table, decode: float
) -> dict[str, Any]:
    """The graph against its parts and the plain script, and how far the scores of the same windows lie apart."""
    torch.set_num_threads(os.cpu_count() or 1)
    started = time.perf_counter()
    theirs = _plain_script(model, videos, plans["fp32"])
    plain = len(theirs) / (time.perf_counter() - started)
    figures: dict[str, Any] = {"plain script": {"windows/s": plain, "times faster": 1.0}}
    torch.set_num_threads(1)
    for precision, plan in plans.items():
        bare = _bare_rate("model", plan, videos)
        answers: list[dict[str, Any]] = []
        with _ray():
            rate = _rate(_noted(_with(plan, top_k=len(plan.weights.classes)), videos, answers))
        figures[f"tag, {precision}"] = _row(rate, 1 / (1 / decode + 1 / bare), decode, bare) | {
            "times faster": rate / plain,
            **_differences(answers, theirs, plan.weights.classes),
        }
    return figures


def _with_a_sleeping_model(plan: ScoringPlan, videos: pa.Table, decode: float) -> dict[str, Any]:
    """The graph with a model as fast as decoding, and one twice as fast; two decoders."""
    plan = _with(plan, workers=1, decode_workers=PROCESSES, batch_size=SLEEPING_BATCH)
    figures: dict[str, Any] = {}
    with _ray():
        for seconds in (1 / decode, 0.5 / decode):
            with _replaced(scorers, "ScoreViews", sleeping_model(seconds)):
                rate = _rate(_noted(plan, videos, []))
            name = f"chain, model sleeps {seconds * 1e3:.0f} ms a window"
            figures[name] = _row(rate, min(decode, 1 / seconds), decode, 1 / seconds)
    return figures


def _repeated(videos: pa.Table, times: int) -> pa.Table:
    """The same videos again and again, under other ids."""
    position, ids = videos.column_names.index("video_id"), videos["video_id"].to_numpy()
    return pa.concat_tables(
        videos.set_column(position, NUMBERED_SCHEMA.field(position), pa.array(ids // times + k)) for k in range(times)
    )


def _row(rate: float, due: float, decode: float, model: float) -> dict[str, Any]:
    return {"bare decode/s": decode, "bare model/s": model, "windows/s": rate, "of what is due": rate / due}


def _with(plan: ScoringPlan, **changes: Any) -> ScoringPlan:
    fields = {name: getattr(plan.config, name) for name in plan.config.__dataclass_fields__} | changes
    return plan_scoring(TagConfig(**fields), plan.weights)


def _bare_rate(kind: str, plan: ScoringPlan, videos: pa.Table) -> float:
    """Windows a second of one stage in two processes at once."""
    with tempfile.TemporaryDirectory() as folder:
        torch.save((plan, videos), f"{folder}/job.pt")
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
    plan, videos = torch.load(f"{folder}/job.pt", weights_only=False)
    decode = DecodeWindows(plan.config.decode, plan.views)

    def decoded() -> Iterator[npt.NDArray[np.uint8]]:
        frames = (window.frames for video in videos.to_pylist() for window in decode(video))
        yield from (found for found in frames if found is not None)

    batch = {"video": np.stack(list(itertools.islice(decoded(), BATCH)))}
    if kind == "decode":
        work: Callable[[], int] = lambda: sum(1 for _ in range(3) for _ in decoded())  # noqa: E731
    else:
        score = ScoreViews(plan.weights, plan.config.precision, False, (), plan.wanted, BATCH)
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


def _rate(tasks: Iterator[int]) -> float:
    """Windows a second of tasks that finish, after the first one."""
    next(tasks)
    started, windows = time.perf_counter(), sum(tasks)
    return windows / (time.perf_counter() - started)


def _noted(plan: ScoringPlan, videos: pa.Table, rows: list[dict[str, Any]]) -> Iterator[int]:
    """Windows of each finished task of the dataset graph; their rows are kept."""
    columns = {"run_key": "bench", "run_id": None}
    with (
        tempfile.TemporaryDirectory() as output,
        working_on(output) as log,
        task_runner(plan, output, columns, log) as runner,
    ):
        for finished in runner.tag(cut_into_tasks(videos, plan.config.videos_per_task)):
            rows += read_files([join(output, TAGS, finished.tags.path)], tag_schema()).to_pylist()
            yield finished.windows


class SleepingModel:
    """Sleeps instead of scoring."""

    seconds = SLEEP_SECONDS

    def __init__(self, *_: Any) -> None:
        pass

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> pa.Table:
        """See `ScoreViews`."""
        time.sleep(self.seconds * len(batch["video"]))
        return pa.table(best_classes(np.ones((len(batch["video"]), 1), np.float32), Answers(top_k=1)))


def sleeping_model(seconds: float) -> type[SleepingModel]:
    """One that sleeps so long for a window."""
    return type("SleepingSoLong", (SleepingModel,), {"seconds": seconds})


class SleepingDecoder(DecodeWindows):
    """Sleeps instead of decoding; every video has as many windows as a batch."""

    def __call__(self, listed: Video) -> Iterator[DecodedWindow]:
        """See `DecodeWindows`."""
        video = {**listed, "duration_seconds": WINDOW_SECONDS * SLEEPING_BATCH}
        for index in range(SLEEPING_BATCH):
            time.sleep(SLEEP_SECONDS)
            yield DecodedWindow(video, index, np.zeros((*self.views.stacked_size, 3), np.uint8))


class SleepingTask(TagOnRay):
    """A task that sleeps instead of decoding."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.decode = SleepingDecoder(self.plan.config.decode, self.plan.views)


@contextmanager
def _replaced(module: ModuleType, name: str, replacement: Any) -> Iterator[None]:
    """Another class as a stage of the dataset graph."""
    original = getattr(module, name)
    setattr(module, name, replacement)
    try:
        yield
    finally:
        setattr(module, name, original)


def _plain_script(model: torch.nn.Module, videos: pa.Table, plan: ScoringPlan) -> Scores:
    """(video, window) → scores: decord's frames, the middle square, OpenCV, the official model."""
    scores = {}
    with IsolatedDecoder(plan.config.decode) as decoder:
        infos = [(video, decoder.probe(Path(video["uri"]))) for video in videos.to_pylist()]
    for video, info in infos:
        video |= dataclasses.asdict(info)
        top, left, height, width = center_crop(info.height, info.width)
        shrink = 2 ** int(np.log2(max(1.0, min(height, width) / SIZE)))
        reader = decord.VideoReader(
            video["uri"], num_threads=1, height=info.height // shrink, width=info.width // shrink
        )
        starts = reader.get_frame_timestamp(range(len(reader)))[:, 0]
        box = (slice(None), *(slice(a // shrink, (a + n) // shrink) for a, n in ((top, height), (left, width))))
        for index in range(int(plan.views.grid.count(info.duration_seconds))):
            (view,) = plan.views.of(video, index)
            frames = np.searchsorted(starts, view.times_seconds + 1e-6, "right") - 1
            pictures = reader.get_batch(frames).asnumpy()[box]
            small = np.stack([cv2.resize(picture, (SIZE, SIZE)) for picture in pictures])
            scores[video["video_id"], index] = _official(model, small)
    return scores


@torch.no_grad()
def _official(model: torch.nn.Module, video: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return np.asarray(model(normalize_video(torch.from_numpy(video)[None]))[0].numpy())


def _differences(answers: Sequence[Mapping[str, Any]], theirs: Scores, classes: Sequence[str]) -> dict[str, float]:
    """Share of windows with the same best class, and the largest difference of a score.

    Fresh weights give every class nearly the same score: "logits x 10" says how far apart scores as sure as those of a
    trained classifier would be.
    """
    pairs = []
    for row in answers:
        by_label = dict(zip(row["labels"], row["scores"], strict=True))
        ours = np.array([by_label[name] for name in classes])
        pairs.append((ours, theirs[row["video_id"], row["window_index"]].astype(float)))
    return {
        "same top-1": float(np.mean([ours.argmax() == other.argmax() for ours, other in pairs])),
        "scores apart": max(float(np.abs(ours - other).max()) for ours, other in pairs),
        "logits x 10": max(float(np.abs(_surer(ours) - _surer(other)).max()) for ours, other in pairs),
    }


def _surer(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    powers: npt.NDArray[np.float64] = (scores / scores.max()) ** 10
    return powers / powers.sum()


def _scaling(plan: ScoringPlan, videos: int) -> dict[str, Any]:
    """Windows a second of sleeping stages on 1, 2 and 4 simulated nodes of two CPUs, and the share of n times one."""
    figures: dict[str, Any] = {}
    one = 0.0
    for nodes in (1, 2, 4):
        rate = _rate_on(nodes, plan, videos * nodes)
        one = one or rate
        figures[f"{nodes} nodes"] = {"windows/s": rate, "efficiency": rate / one / nodes}
    return figures


def _rate_on(nodes: int, plan: ScoringPlan, count: int) -> float:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": NODE_CPUS, "include_dashboard": False})
    for _ in range(nodes - 1):
        cluster.add_node(num_cpus=NODE_CPUS)
    ray.init(address=cluster.address, log_to_driver=False)
    rows = [{"video_id": number, "uri": f"{number:06d}", "content_version": "1"} for number in range(count)]
    videos = pa.Table.from_pylist(rows, schema=NUMBERED_SCHEMA)
    plan = _with(plan, workers=nodes, decode_workers=nodes, batch_size=SLEEPING_BATCH)
    plan = dataclasses.replace(plan, views=dataclasses.replace(plan.views, input_size=SMALL))
    try:
        with (
            _replaced(tagging_pipeline, "TagOnRay", SleepingTask),
            _replaced(scorers, "ScoreViews", SleepingModel),
        ):
            return _rate(_noted(plan, videos, []))
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
