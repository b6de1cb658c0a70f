"""The stage of the tagging job: the videos of one task → their rows, as a file for each of the two tables.

A task has whole videos, so it reads each once and derives its row itself.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.tagging.config import ScoringPlan
from jobs.tagging.job_log import NONE, Begin
from pipeline.decode.crash_budget import FATAL, MOST
from pipeline.schema import OK
from pipeline.storage.blame import Blame
from pipeline.storage.delta import Change, DataFile, write_data_file
from pipeline.storage.files import join
from pipeline.tagging.rows import ScoredWindow, tag_rows, video_row
from pipeline.tagging.schema import TAGS, VIDEO_SCHEMA, VIDEOS, tag_schema
from pipeline.tagging.stages import DecodedWindow, DecodeWindows, Video
from pipeline.tagging.tables import Changes
from pipeline.tagging.windows import video_id

RUN_AHEAD_BATCHES = 4  # decoded and not scored yet, in the object store
EXAMPLES = 3

Frames = npt.NDArray[np.uint8]


class Scoring(Protocol):
    """Where decoded windows are sent."""

    def submit(self, video: Frames, /) -> Any:
        """Send one batch ``[B, V * T, H, W, 3]``; returns what `result` takes."""

    def result(self, ticket: Any, /) -> pa.Table:
        """``classes``, ``scores`` and perhaps ``embedding`` of one batch."""


class AttemptCount(Protocol):
    """Who counts attempts at videos, durably."""

    def begin(self, asked: Begin, /) -> int:
        """Returns once it is noted that a video is begun: the lost attempts at it before."""


@dataclass(frozen=True)
class FinishedTask:
    """What the driver learns of a task: files and counts."""

    number: int
    tags: DataFile
    videos: DataFile
    num_videos: int
    outcomes: dict[str, int]
    """`OK` or the error → rows of `tags`."""
    failures: dict[str, int] = field(default_factory=dict)
    """Reason → videos without a single scored window."""
    blamed: dict[str, dict[str, int]] = field(default_factory=dict)
    """`Blame` → the same of those that are not, or may not be, the video's own fault."""
    examples: list[tuple[str, str, str]] = field(default_factory=list)
    """Reason, URI and message of a few failures; first those that are `blamed` on something else."""

    @property
    def windows(self) -> int:
        """Windows scored."""
        return self.outcomes.get(OK, 0)

    @property
    def changes(self) -> Changes:
        """What its commit adds to the tables."""
        return Changes(Change((self.tags,)), Change((self.videos,)))

    def to_json(self) -> str:
        """As text for Ray Data's blocks."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> FinishedTask:
        """The reverse of `to_json`."""
        record = json.loads(text)
        files = {name: DataFile(**record[name]) for name in (TAGS, VIDEOS)}
        return cls(**{**record, **files, "examples": [tuple(example) for example in record["examples"]]})


class ScoringQueue:
    """Sends decoded windows to the models in full batches, across videos, and keeps only their names meanwhile."""

    def __init__(self, plan: ScoringPlan, scorers: Scoring) -> None:
        self.videos: dict[int, Video] = {}
        """Video id → the video, with the facts that its decoder found."""
        self.windows: dict[int, list[ScoredWindow]] = {}
        """Video id → its windows that are scored or failed, in no particular order."""
        self.blamed: dict[int, Blame] = {}
        """Video id → who else may be to blame for its failed windows."""
        self._plan, self._scorers = plan, scorers
        self._batch_size = plan.wanted.rows_at_once(plan.config.batch_size)
        self._batch: list[tuple[DecodedWindow, Frames]] = []
        self._sent: deque[tuple[list[tuple[int, int | None]], Any]] = deque()

    def add(self, window: DecodedWindow) -> None:
        """Take the next window; waits while the models are far behind."""
        key = window.video["video_id"]
        self.videos[key] = window.video
        windows = self.windows.setdefault(key, [])
        if window.blame is not Blame.OBJECT:
            self.blamed[key] = window.blame
        if window.frames is None:
            windows.append(ScoredWindow(window.index, status=window.status, message=window.message))
            return
        self._batch.append((window, window.frames))
        if len(self._batch) == self._batch_size:
            self._send()
            self._receive(RUN_AHEAD_BATCHES)

    def finish(self) -> None:
        """Send the rest, and wait for all answers."""
        if self._batch:
            self._send()
        self._receive(0)

    def _send(self) -> None:
        names = [(window.video["video_id"], window.index) for window, _ in self._batch]
        self._sent.append((names, self._scorers.submit(np.stack([frames for _, frames in self._batch]))))
        self._batch = []

    def _receive(self, most: int) -> None:
        """Receive answers until at most so many batches are on their way."""
        while len(self._sent) > most:
            names, ticket = self._sent.popleft()
            for (video, index), row in zip(names, self._scorers.result(ticket).to_pylist(), strict=True):
                self.windows[video].append(answer(index, row, self._plan))


class TagVideos:
    """Tables of `PLANNED_SCHEMA` with a column ``task`` → `FinishedTask` as text, in the column ``finished``."""

    def __init__(
        self, plan: ScoringPlan, output: str, columns: Mapping[str, Any], scorers: Scoring, attempts: AttemptCount
    ) -> None:
        """``columns``: further columns of every row (run key, run id)."""
        self.plan, self.output = plan, output
        self.common = {"weights_digest": plan.weights.digest, **columns}
        self.scorers, self.attempts = scorers, attempts
        self.decode = DecodeWindows(plan.config.decode, plan.views, plan.config.max_repeated_windows)

    def __call__(self, videos: pa.Table) -> pa.Table:
        """The rows of one task, written."""
        number, run = videos["task"][0].as_py(), uuid.uuid4().hex
        self.decode.begin_task()
        queue = ScoringQueue(self.plan, self.scorers)
        attempts: dict[int, int] = {}
        for listed in videos.to_pylist():
            video = {"video_id": video_id(listed["uri"], listed["content_version"]), **listed}
            for window in self._windows(video, str(number), run, attempts):
                queue.add(window)
        queue.finish()
        self.attempts.begin(Begin(str(number), run, NONE))
        return pa.table({"finished": [self._write(number, queue, attempts).to_json()]})

    def _windows(self, video: Video, task: str, run: str, attempts: dict[int, int]) -> Iterator[DecodedWindow]:
        """The windows of a video, as one attempt at it; failed at once when it has none left."""
        key = video["video_id"]
        lost = self.attempts.begin(Begin(task, run, key, video["uri"]))
        attempts[key] = min(MOST, lost + 1)
        if lost >= MOST:
            message = f"{MOST} attempts killed or hung the decoder or its worker"
            yield DecodedWindow(video, None, None, "crashed", message)
            return
        for window in self.decode(video):
            if window.status in FATAL and attempts[key] < MOST:
                # `IsolatedDecoder` has tried such a window twice itself.
                attempts[key] = self.attempts.begin(Begin(task, run, key, video["uri"], give_up=True))
            yield window

    def _write(self, number: int, queue: ScoringQueue, attempts: Mapping[int, int]) -> FinishedTask:
        """Write the rows of all videos as one file for each table."""
        tags: list[dict[str, Any]] = []
        videos: list[dict[str, Any]] = []
        for key, video in queue.videos.items():
            common = {**self.common, "attempts": attempts[key]}
            windows = sorted(queue.windows[key], key=lambda window: window.index or 0)
            rows = tag_rows(video, windows, self.plan.views.grid, common)
            tags += rows
            videos.append(video_row(video, rows, common))
        name = uuid.uuid4().hex
        return FinishedTask(
            number,
            tags=self._file(TAGS, name, tags, tag_schema(bool(self.plan.embedding_size))),
            videos=self._file(VIDEOS, name, videos, VIDEO_SCHEMA),
            num_videos=len(videos),
            outcomes=dict(Counter(row["status"] for row in tags)),
            **_failures(videos, queue.blamed),
        )

    def _file(self, table: str, name: str, rows: list[dict[str, Any]], schema: pa.Schema) -> DataFile:
        return write_data_file(join(self.output, table), pa.Table.from_pylist(rows, schema=schema), name)


def _failures(videos: Sequence[Mapping[str, Any]], blamed: Mapping[int, Blame]) -> dict[str, Any]:
    """The fields of `FinishedTask` about failed videos."""
    failed = [row for row in videos if row["windows"] == row["windows_failed"]]
    failed.sort(key=lambda row: blamed.get(row["video_id"], Blame.OBJECT) is Blame.OBJECT)
    by_blame = {
        str(whose): dict(Counter(row["error_class"] for row in failed if blamed.get(row["video_id"]) is whose))
        for whose in (Blame.EITHER, Blame.SURROUNDINGS)
    }
    examples = [(row["error_class"], row["uri"], row["message"]) for row in failed[:EXAMPLES]]
    return {"failures": dict(Counter(row["error_class"] for row in failed)), "blamed": by_blame, "examples": examples}


def answer(index: int | None, row: Mapping[str, Any], plan: ScoringPlan) -> ScoredWindow:
    """Of one window's classes and scores the labels that reach their thresholds."""
    named = [(plan.weights.classes[number], score) for number, score in zip(row["classes"], row["scores"], strict=True)]
    kept = [(label, score) for label, score in named if score >= plan.thresholds[label]]
    labels, scores = [label for label, _ in kept], [score for _, score in kept]
    return ScoredWindow(index, labels, scores, embedding=row.get("embedding"))
