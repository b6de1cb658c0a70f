"""Stops a job whose videos fail for a common cause: the credentials, the limits of decoding, the source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from jobs.core.errors import WorkStoppedError
from pipeline.schema import DELETED, OK

FEWEST_VIDEOS = 20
EXAMPLES = 3


class FailureBudget:
    """Counts the videos without a single scored window; when they are too many, the job stops."""

    def __init__(self, max_share: float, videos: int) -> None:
        self._max_share, self._videos = max_share, videos
        self._failed: dict[int, Mapping[str, Any]] = {}
        self._good: set[int] = set()

    def count(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Count rows with ``video_id, uri, status, message``; `WorkStoppedError` over the permitted share of videos."""
        for row in rows:
            if row["status"] == OK:
                self._good.add(row["video_id"])
                self._failed.pop(row["video_id"], None)
            elif row["status"] != DELETED and row["video_id"] not in self._good:
                self._failed.setdefault(row["video_id"], row)
        if self._videos >= FEWEST_VIDEOS and len(self._failed) > self._max_share * self._videos:
            raise WorkStoppedError(self._message())

    def _message(self) -> str:
        reasons = Counter(row["status"] for row in self._failed.values())
        commonest = reasons.most_common(1)[0][0]
        examples = [row for row in self._failed.values() if row["status"] == commonest][:EXAMPLES]
        return (
            f"max_failed_share={self._max_share}: {len(self._failed)} of {self._videos} videos have failed "
            f"({', '.join(f'{reason}: {count}' for reason, count in reasons.most_common())}); look at "
            + "; ".join(f"{row['uri']} ({row['message']})" for row in examples)
            + "; correct the cause, or allow a larger share; the same command resumes"
        )
