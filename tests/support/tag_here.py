"""`python -m jobs.tag` with its stages in the driver's own process, without Ray: starts cost little more than imports.

``python -m tests.support.tag_here key=value ...``; PACE_SECONDS is a pause after every task, so that kills find a job
at work.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs import tag
from jobs.scoring.stage import ScoreViews
from jobs.tagging import job, job_log
from jobs.tagging.config import ScoringPlan
from jobs.tagging.job_log import Begin, JobLog
from jobs.tagging.pipeline import rewrite_file
from jobs.tagging.stage import FinishedTask, TagVideos
from pipeline.storage.delta import Change
from pipeline.tagging.tables import Ids, Rewrite


class ModelHere:
    """Scores when the answer is asked for."""

    def __init__(self, plan: ScoringPlan) -> None:
        config = plan.config
        self._score = ScoreViews(plan.weights, config.precision, False, (), plan.wanted, config.batch_size)

    def submit(self, video: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """See `jobs.tagging.stage.Scoring`."""
        return video

    def result(self, ticket: npt.NDArray[np.uint8]) -> pa.Table:
        """See `jobs.tagging.stage.Scoring`."""
        return self._score({"video": ticket})


class AttemptsHere:
    """Asks the job log itself."""

    def __init__(self, log: JobLog) -> None:
        self._log = log

    def begin(self, asked: Begin) -> int:
        """See `jobs.tagging.stage.AttemptCount`."""
        return self._log.begin([asked])[0]


class RunnerHere:
    """One task after the other."""

    def __init__(self, plan: ScoringPlan, output: str, columns: Mapping[str, Any], log: JobLog) -> None:
        self._stage = TagVideos(plan, output, columns, ModelHere(plan), AttemptsHere(log))

    def tag(self, tasks: Sequence[pa.Table]) -> Iterator[FinishedTask]:
        """See `jobs.tagging.pipeline.TaskRunner`."""
        for task in tasks:
            yield FinishedTask.from_json(self._stage(task)["finished"][0].as_py())
            time.sleep(float(os.environ.get("PACE_SECONDS", "0")))

    def rewrite(self, files: Sequence[Rewrite], video_ids: Ids) -> list[tuple[Rewrite, Change]]:
        """See `jobs.tagging.pipeline.TaskRunner`."""
        embeddings = bool(self._stage.plan.embedding_size)
        answers = [(file, rewrite_file(self._stage.output, file, video_ids, embeddings)) for file in files]
        return [(file, change) for file, change in answers if change is not None]


@contextmanager
def runner_here(plan: ScoringPlan, output: str, columns: Mapping[str, Any], log: JobLog) -> Iterator[RunnerHere]:
    """See `jobs.tagging.pipeline.task_runner`."""
    yield RunnerHere(plan, output, columns, log)


if __name__ == "__main__":
    job.task_runner = runner_here  # type: ignore[assignment]
    job_log.HEARTBEAT_SECONDS = 0.2
    tag.main()
