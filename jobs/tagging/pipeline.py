"""The dataset graph of the tagging job: tasks of whole videos → files of rows, by decoding and model actors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.actor import ActorHandle
from ray.data import ActorPoolStrategy, Dataset
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.core.errors import WorkStoppedError
from jobs.core.ray_cluster import connect
from jobs.scoring.scorers import Scorers, running_scorers
from jobs.scoring.stage import ACTOR_RETRIES, plan_actors
from jobs.tagging.config import ScoringPlan
from jobs.tagging.job_log import Begin, JobLog
from jobs.tagging.stage import FinishedTask, TagVideos
from pipeline.ray_data import configure_execution
from pipeline.storage.delta import Change
from pipeline.tagging.schema import TAGS, VIDEO_SCHEMA, tag_schema
from pipeline.tagging.tables import Ids, Rewrite, rewritten

DECODER_BYTES = 512 * 2**20
BLOCK_BYTES = 2**20
ASK_SECONDS = 1.0
PAUSE_SECONDS = 0.05  # from commit to commit of the job log: what is asked meanwhile is answered together


def tagging_graph(
    tasks: Sequence[pa.Table],
    plan: ScoringPlan,
    output: str,
    columns: Mapping[str, Any],
    scorers: Sequence[ActorHandle],
    attempts: ActorHandle,
) -> Dataset:
    """Tasks → a row for each that is finished, in no particular order."""
    blocks = ray.data.from_arrow(list(tasks))
    configure_execution(blocks, block_bytes=BLOCK_BYTES)
    return blocks.map_batches(
        TagOnRay,
        fn_constructor_args=(plan, output, columns, list(scorers), attempts),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            size=min(plan_actors(plan.config).decode, len(tasks)),
            # Of two, the second would wait for hours behind a long video while other actors are idle.
            max_tasks_in_flight_per_actor=1,
        ),
        num_cpus=1,
        memory=DECODER_BYTES,
        **ACTOR_RETRIES,
    )


class TagOnRay(TagVideos):
    """`TagVideos` in a Ray actor."""

    def __init__(
        self,
        plan: ScoringPlan,
        output: str,
        columns: Mapping[str, Any],
        scorers: Sequence[ActorHandle],
        attempts: ActorHandle,
    ) -> None:
        super().__init__(plan, output, columns, Scorers(scorers), RemoteAttempts(attempts))


class RemoteAttempts:
    """Asks the driver by its `AttemptsActor`."""

    def __init__(self, attempts: ActorHandle) -> None:
        self._attempts = attempts

    def begin(self, asked: Begin) -> int:
        """See `jobs.tagging.stage.AttemptCount`."""
        return int(ray.get(self._attempts.begin.remote(asked)))


class AttemptsActor:
    """Where tasks ask, and the driver answers, many at a time: an actor, because nobody can call the driver."""

    def __init__(self) -> None:
        self._asked: list[tuple[Begin, asyncio.Future[int]]] = []
        self._answering: list[asyncio.Future[int]] = []
        self._news = asyncio.Event()
        self._refused = ""

    async def begin(self, asked: Begin) -> int:
        """Wait for the driver's answer.

        Raises:
            WorkStoppedError: the job stops.
        """
        if self._refused:
            raise WorkStoppedError(self._refused)
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._asked.append((asked, answer))
        self._news.set()
        return await answer

    async def asked(self, seconds: float) -> list[Begin]:
        """What has been asked, as soon as there is something; nothing after so many seconds."""
        try:
            await asyncio.wait_for(self._news.wait(), seconds)
        except TimeoutError:
            return []
        self._news.clear()
        asked, self._asked = self._asked, []
        self._answering = [answer for _, answer in asked]
        return [one for one, _ in asked]

    async def answer(self, lost: list[int]) -> None:
        """The answers to what `asked` has returned, in that order."""
        for future, count in zip(self._answering, lost, strict=True):
            if not future.done():  # the caller may have died
                future.set_result(count)

    async def refuse(self, why: str) -> None:
        """All calls, waiting and later ones, get an error."""
        self._refused = why
        for future in [*self._answering, *(answer for _, answer in self._asked)]:
            if not future.done():
                future.set_exception(WorkStoppedError(why))


@contextmanager
def answered_attempts(log: JobLog) -> Iterator[ActorHandle]:
    """An `AttemptsActor` whose questions the job log answers, in a thread, while the context lasts."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)  # dies with the driver
    attempts = ray.remote(AttemptsActor).options(num_cpus=0, max_concurrency=10_000, scheduling_strategy=here).remote()
    ended = threading.Event()

    def serve() -> None:
        while not ended.wait(PAUSE_SECONDS):
            if asked := ray.get(attempts.asked.remote(ASK_SECONDS)):
                try:
                    attempts.answer.remote(log.begin(asked))
                except Exception as error:  # noqa: BLE001 - the tasks get it, and the driver theirs
                    attempts.refuse.remote(str(error))
                    return

    thread = threading.Thread(target=serve, daemon=True, name="attempts")
    thread.start()
    try:
        yield attempts
    finally:
        ended.set()
        thread.join()


class TaskRunner:
    """Runs tasks on the cluster, with model actors that stay from part to part."""

    def __init__(
        self,
        plan: ScoringPlan,
        output: str,
        columns: Mapping[str, Any],
        *,
        scorers: Sequence[ActorHandle],
        attempts: ActorHandle,
    ) -> None:
        self._plan, self._output, self._columns = plan, output, columns
        self._scorers, self._attempts = scorers, attempts

    def tag(self, tasks: Sequence[pa.Table]) -> Iterator[FinishedTask]:
        """Each task as soon as its files are written."""
        graph = tagging_graph(tasks, self._plan, self._output, self._columns, self._scorers, self._attempts)
        for batch in graph.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from map(FinishedTask.from_json, batch["finished"].to_pylist())

    def rewrite(self, files: Sequence[Rewrite], video_ids: Ids) -> list[tuple[Rewrite, Change]]:
        """The files that hold rows of these videos, rewritten without them."""
        embeddings = bool(self._plan.embedding_size)
        # No CPU: all of them may belong to the actors of the graph.
        task, ids = ray.remote(rewrite_file).options(num_cpus=0, max_retries=2), ray.put(video_ids)
        answers = ray.get([task.remote(self._output, file, ids, embeddings) for file in files])
        return [(file, change) for file, change in zip(files, answers, strict=True) if change is not None]


def rewrite_file(output: str, file: Rewrite, video_ids: Ids, embeddings: bool) -> Change | None:
    """`rewritten` with the schema of the file's table."""
    return rewritten(output, file, video_ids, tag_schema(embeddings) if file.table == TAGS else VIDEO_SCHEMA)


@contextmanager
def task_runner(plan: ScoringPlan, output: str, columns: Mapping[str, Any], log: JobLog) -> Iterator[TaskRunner]:
    """The cluster, ready to tag."""
    connect()
    with running_scorers(plan.weights, plan.config, plan.wanted) as scorers, answered_attempts(log) as attempts:
        yield TaskRunner(plan, output, columns, scorers=scorers, attempts=attempts)
