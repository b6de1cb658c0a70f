"""Stops a job whose videos fail for a common cause outside of them: the storage, the credentials, the machine.

Broken content stops nothing, and neither do links that lead nowhere, archived objects or those that their owner keeps
to himself (`pipeline.storage.blame`). Anyone who can upload could otherwise switch tagging off by uploading junk.
"""

from __future__ import annotations

from collections import Counter

from jobs.core.cli import echo
from jobs.core.errors import TooManyFailuresError
from jobs.tagging.stage import FinishedTask
from pipeline.storage.blame import Blame

FEWEST_VIDEOS = 20
EXAMPLES = 3
DECODERS_END = ("crashed", "timeout", "out_of_memory", "interrupted")
"""How a decoder ends that the machine kills, and one that a video kills: the first where no video can be decoded."""


class FailureBudget:
    """Counts the videos without a single scored window; when the surroundings fail too many, the job stops."""

    def __init__(self, max_share: float, videos: int) -> None:
        self._max_share, self._videos = max_share, videos
        self._reasons: Counter[str] = Counter()
        self._surroundings: Counter[str] = Counter()
        self._either: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}
        self._done = 0

    def count(self, task: FinishedTask) -> None:
        """Count a task's failures; `TooManyFailuresError` over the permitted share of videos."""
        self._done += task.num_videos
        self._reasons.update(task.failures)
        self._surroundings.update(task.blamed.get(Blame.SURROUNDINGS, {}))
        self._either.update(task.blamed.get(Blame.EITHER, {}))
        self._either.update({reason: count for reason, count in task.failures.items() if reason in DECODERS_END})
        for reason, uri, message in task.examples:
            self._examples.setdefault(reason, []).append(f"{uri} ({message})")
            del self._examples[reason][EXAMPLES:]
        any_good = self._done > self._reasons.total()
        failed = self._surroundings if any_good else self._surroundings + self._either
        if self._videos >= FEWEST_VIDEOS and failed.total() > self._max_share * self._videos:
            raise TooManyFailuresError(self._message(failed))

    def warn(self) -> None:
        """Print a line where more videos than the permitted share have failed, for whatever reason."""
        total = self._reasons.total()
        if self._videos >= FEWEST_VIDEOS and total > self._max_share * self._videos:
            echo(f"{total} of {self._videos} videos have failed ({_counted(self._reasons)})", warning=True)

    def _message(self, failed: Counter[str]) -> str:
        examples = next((self._examples[reason] for reason, _ in failed.most_common() if reason in self._examples), [])
        return (
            f"max_failed_share={self._max_share}: {failed.total()} of {self._videos} videos have failed "
            f"({_counted(failed)}); look at {'; '.join(examples)}"
            "; correct the cause, or allow a larger share; the same command resumes"
        )


def _counted(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
