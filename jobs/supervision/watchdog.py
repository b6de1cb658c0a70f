"""The driver's watchdog over its workers: prints lines and progress, passes SIGTERM on, finds hangs and lost tokens."""

from __future__ import annotations

import signal
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from jobs.core.cli import bars_are_drawn, console
from jobs.core.errors import TrainingStoppedError
from jobs.core.events import emit, emit_log, is_json
from jobs.core.text import shown
from jobs.runs.fencing import FencingToken, SupersededError
from jobs.supervision.capacity import WorkerCapacity
from jobs.supervision.coordinator import Activity, Coordinator, Heartbeat, Line, StopReason, elapsed_minutes
from jobs.supervision.hosts import draining_hosts, hosts_of_actors
from jobs.supervision.stack_dump import stack_of, take_stacks_and_kill, waits_for_others
from pipeline.storage.files import StorageError, join, write_bytes

POLL_SECONDS = 0.5
SECONDS_BETWEEN_TOKEN_CHECKS = 5.0
SECONDS_BETWEEN_SIZE_CHECKS = 5.0
MINUTES_WITHOUT_CAPACITY = 0.5
SECONDS_FOR_STACKS_OF_A_HOST = 30.0


class Watchdog:
    """One run as its driver sees it, over all groups of workers that it takes.

    Args:
        hang_minutes: without a step for so long the workers are ended (the group then dies, and can be replaced).
        saving_minutes: the same while a rank waits for its checkpoint to be written, where that is more.
        capacity: whether the cluster has capacity for more workers, or no longer for these.
        on_steps: takes the journal lines of steps as they are done.
    """

    def __init__(
        self,
        name: str,
        total_steps: int,
        *,
        hang_minutes: float,
        saving_minutes: float,
        capacity: WorkerCapacity,
        on_steps: Callable[[list[dict[str, Any]]], None],
    ) -> None:
        self._host = ray.get_runtime_context().get_node_id()
        here = NodeAffinitySchedulingStrategy(self._host, soft=False)
        self.coordinator = ray.remote(num_cpus=0)(Coordinator).options(scheduling_strategy=here).remote()
        self.lost: TrainingStoppedError | None = None
        """Why no further group may follow, once that is so: who took the output over, or that the coordinator died."""
        self.host_announced = False
        """Whether the end of a host with actors of this group was announced: if the group dies, it is no failure."""
        self._hang_minutes, self._saving_minutes = hang_minutes, max(hang_minutes, saving_minutes)
        self.capacity, self._on_steps = capacity, on_steps
        self._progress = _progress()
        self._task = self._progress.add_task(name, total=total_steps)
        self._stop_requested, self._ended = threading.Event(), threading.Event()
        self._warning_lock = threading.Lock()
        self._token: FencingToken | None = None
        self._workers = self._first_step = self._steps = 0
        self._too_small = self._warned = self._acknowledged = self._failed = False
        self._heartbeats: Mapping[int, Heartbeat] = {}
        self._former_actors = frozenset[str]()
        self._moved_at = self._size_checked_at = time.monotonic()

    def begin(self, token: FencingToken, workers: int, step: int) -> None:
        """A group of workers starts from a step."""
        ray.get(self.coordinator.begin.remote(token.generation, step))
        self._token, self._workers, self._too_small, self.host_announced = token, workers, False, False
        self._former_actors = frozenset(hosts_of_actors())  # also of the last group, while it is being ended
        self._first_step = self._steps = step
        self._moved_at = self._size_checked_at = time.monotonic()
        self._progress.update(self._task, completed=step)
        self.log(f"generation {token.generation}: {workers} worker{'s' * (workers > 1)} from step {step} on")

    def pause(self) -> None:
        """The group of workers has ended; until the next one begins there is no token to lose and no rank to hang."""
        self._token = None

    @property
    def stop_requested(self) -> bool:
        """Whether SIGTERM has arrived."""
        return self._stop_requested.is_set()

    def log(self, *lines: str) -> None:
        """Print lines above the progress bar."""
        if is_json():
            for line in lines:
                emit_log(line, step=self._steps)
            return
        self._progress.console.print(Text("\n".join(map(shown, lines))), highlight=False, soft_wrap=True)

    def _log_line(self, line: Line) -> None:
        """Print what a worker posted; of a step the figures, but not the samples that it took."""
        if line.figures and is_json():
            figures = {key: value for key, value in line.figures.items() if key != "sample_ids"}
            emit("step", line.text, figures, step=figures["step"])
        else:
            self.log(line.text)

    def result(self) -> dict[str, Any] | None:
        """How the group ended; None when it died."""
        result: dict[str, Any] | None = ray.get(self.coordinator.result.remote())
        return result

    @contextmanager
    def watching(self) -> Iterator[Watchdog]:
        """Watch while the context lasts, in threads, because a signal handler must not call into Ray."""
        former = signal.signal(signal.SIGTERM, lambda _signal, _frame: self._stop_requested.set())
        watcher = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        with self._progress:
            watcher.start()
            threading.Thread(target=self._watch_token, name="token-watchdog", daemon=True).start()
            try:
                yield self
            finally:
                self._ended.set()
                watcher.join()
                lost_before = self.lost
                self._guarded(self._poll)
                signal.signal(signal.SIGTERM, former)
        if self._failed and self.lost is not None and self.lost is not lost_before:
            raise self.lost  # the last lines of the journal were taken, and reached nobody

    def _watch(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            if not self._guarded(self._poll_and_check):
                take_all_stacks(self._heartbeats.values())  # without the coordinator a hang would go unnoticed
                return

    def _watch_token(self) -> None:
        """In a separate thread, because storage may block without an end."""
        while not self._ended.wait(SECONDS_BETWEEN_TOKEN_CHECKS):
            self._guarded(self._check_token)

    def _guarded(self, poll: Callable[[], None]) -> bool:
        """Whether there is anything left to watch. What fails in a poll, as a silent cluster, must not end that."""
        try:
            poll()
        except ActorDiedError as error:
            self.lost = TrainingStoppedError(
                f"the actor between driver and workers died ({error}); start the same command again"
            )
            return False
        except (RayError, StorageError, ValueError, KeyError) as error:
            with self._warning_lock:  # both threads come through here
                warned, self._warned = self._warned, True
            if not warned:
                self.log(f"warning: the watchdog continues after {type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001 - a thread that ended silently would leave the run without a watch
            return self._fail(error)
        return True

    def _fail(self, error: Exception) -> bool:
        """Stop the run for an error that nobody expects here: the workers save first.

        Returns:
            False once it failed before: a hang might go unnoticed.
        """
        with self._warning_lock:
            failed, self._failed = self._failed, True
        if failed:
            return False
        self.log(f"the watchdog failed: {type(error).__name__}: {error}; saving and stopping")
        self.log(*"".join(traceback.format_exception(error)).splitlines())
        self.lost = self.lost or TrainingStoppedError(
            f"the watchdog failed ({type(error).__name__}: {error}); the log above has the traceback; "
            "the same command resumes"
        )
        self.coordinator.request.remote(StopReason.RESIZED)
        return True

    def _poll_and_check(self) -> None:
        if self.stop_requested:
            if not self._acknowledged:
                self.log("stop requested: the current step is finished and saved first")
            self._acknowledged = True
            self.coordinator.request.remote(StopReason.REQUESTED)
        self._poll()
        if self._token is not None:
            self._check_for_hang(self._token)
            self._check_size()

    def _poll(self) -> None:
        lines, figures, steps, heartbeats = ray.get(self.coordinator.take.remote())
        for line in lines:
            self._log_line(line)
        if self.lost is None:  # else another job sends these steps
            self._on_steps(figures)
        if _progress_of(heartbeats) != _progress_of(self._heartbeats):
            self._moved_at = time.monotonic()
        self._heartbeats, self._steps = heartbeats, steps
        self._progress.update(self._task, completed=steps)

    def _check_token(self) -> None:
        token = self._token
        lost = token.superseded_by() if token else ""
        if lost and token is self._token:  # else this command itself took the next one meanwhile
            self.lost = SupersededError(lost)
            self.coordinator.request.remote(StopReason.RESIZED)

    def _check_size(self) -> None:
        if time.monotonic() - self._size_checked_at < SECONDS_BETWEEN_SIZE_CHECKS:
            return
        self._size_checked_at = time.monotonic()
        # After a host was lost, workers can wait without an end for data that no CPU is left to decode.
        self._too_small = not self.capacity.has(self._workers)
        self._check_announcements()
        runs = self._steps > self._first_step  # before, CPUs may be free that its stream is about to take
        if self._too_small or self.host_announced or (runs and self.capacity.may_grow(self._workers)):
            self.coordinator.request.remote(StopReason.RESIZED)

    def _check_announcements(self) -> None:
        """Hosts that are drained: the group saves and continues without them, while all of it is still there."""
        draining = draining_hosts()
        if self._host in draining and not self.stop_requested:
            self.log("the host of this command is about to be taken away: saving and stopping")
            self._stop_requested.set()
        if not self.host_announced and draining & self._hosts_in_use():
            taken = [beat for _, beat in sorted(self._heartbeats.items()) if beat.node_id in draining]
            lost = f"ranks {', '.join(f'{beat.rank} on {beat.host}' for beat in taken)}" if taken else "data stream"
            self.log(f"hosts are about to be taken away ({lost}): saving, and continuing without them")
            self.host_announced = True

    def _hosts_in_use(self) -> frozenset[str]:
        """Where anything of this group runs: a stream ends the group, too, when its reader is lost too often."""
        actors = {host for actor, host in hosts_of_actors().items() if actor not in self._former_actors}
        return frozenset(actors | {beat.node_id for beat in self._heartbeats.values()})

    def _most_minutes(self) -> float:
        """How long the progress of all ranks may stay the same."""
        if any(heartbeat.activity is Activity.SAVING for heartbeat in self._heartbeats.values()):
            # The writer has the same limit; a storage that blocks it keeps it from reporting.
            return self._saving_minutes
        return min(self._hang_minutes, MINUTES_WITHOUT_CAPACITY) if self._too_small else self._hang_minutes

    def _check_for_hang(self, token: FencingToken) -> None:
        most_minutes, heartbeats = self._most_minutes(), self._heartbeats
        if elapsed_minutes(self._moved_at) < most_minutes:
            return
        if not heartbeats:
            self._moved_at = time.monotonic()
            self.log(f"warning: no heartbeat of any worker for {most_minutes:g} minutes; waiting for them")
            return
        stacks = take_all_stacks(heartbeats.values())
        slow = [f"rank {rank}: never sent a heartbeat" for rank in range(self._workers) if rank not in heartbeats]
        slow = slow or [f"{heartbeats[r]}{'' if stacks[r] else ', no stacks'}" for r in slow_ranks(heartbeats, stacks)]
        uri = join(token.output, "hangs", f"generation-{token.generation:04d}.txt")
        parts = [f"{heartbeat}\n\n{stacks[rank] or 'no stacks'}\n" for rank, heartbeat in sorted(heartbeats.items())]
        no_capacity = f"the cluster has no capacity for {self._workers} workers and their data"
        reason = no_capacity if self._too_small else "a hang"
        self.log(f"warning: {reason}: no step for {most_minutes:g} minutes; slow: {'; '.join(slow)}; stacks: {uri}")
        self._moved_at = time.monotonic()
        try:
            write_bytes(uri, ("\n".join(parts)).encode())
        except StorageError as error:
            self.log(f"warning: stacks not written: {error}", *"\n".join(parts).splitlines())


def _progress_of(heartbeats: Mapping[int, Heartbeat]) -> list[tuple[int, int, int]]:
    return [heartbeat.progress for _, heartbeat in sorted(heartbeats.items())]


def take_all_stacks(heartbeats: Collection[Heartbeat]) -> dict[int, str]:
    """End the ranks' processes; their stacks by rank, empty for those that gave none."""
    taking = {}
    for heartbeat in heartbeats:
        there = NodeAffinitySchedulingStrategy(heartbeat.node_id, soft=False)
        task = ray.remote(num_cpus=0, max_retries=0)(take_stacks_and_kill).options(scheduling_strategy=there)
        taking[task.remote(heartbeat.pid, heartbeat.stacks_path)] = heartbeat.rank
    stacks = dict.fromkeys(taking.values(), "")
    ready, _ = ray.wait(list(taking), num_returns=len(taking), timeout=SECONDS_FOR_STACKS_OF_A_HOST)
    for answer in ready:
        try:
            stacks[taking[answer]] = ray.get(answer)
        except ray.exceptions.RayError:  # its host is lost: no stacks
            continue
    return stacks


def slow_ranks(heartbeats: Mapping[int, Heartbeat], stacks: Mapping[int, str]) -> list[int]:
    """The ranks that the others wait for: outside any collective operation, or else the least far."""

    def waits(rank: int) -> bool:
        return waits_for_others(stack_of("train_worker", stacks[rank]))

    keys = {rank: (waits(rank), heartbeat.progress) for rank, heartbeat in heartbeats.items()}
    return sorted(rank for rank, key in keys.items() if key == min(keys.values()))


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not bars_are_drawn())
