"""How a caller spreads its batches over the model actors. No Ray."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs.scoring import scorers as module
from jobs.scoring.scorers import Scorers

VIDEO = np.zeros((2, 8, 4, 4, 3), np.uint8)


class Actor:
    """Stands for the handle of one."""

    def __init__(self, name: str, sent: list[tuple[str, int]]) -> None:
        def remote(batch: dict[str, Any]) -> tuple[str, int]:
            sent.append((name, len(sent)))
            assert batch["video"] is VIDEO
            return sent[-1]

        self.__call__ = SimpleNamespace(remote=remote)


def test_each_batch_goes_to_the_actor_with_the_fewest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.ray, "get", lambda ticket: pa.table({"of": [ticket[0]]}))
    sent: list[tuple[str, int]] = []
    scorers = Scorers([Actor(name, sent) for name in "abc"])  # type: ignore[list-item]
    tickets = [scorers.submit(VIDEO) for _ in range(6)]
    assert Counter(name for name, _ in sent) == {"a": 2, "b": 2, "c": 2}
    slow = sent[0][0]
    for ticket in tickets:
        if ticket[0] != slow:
            assert scorers.result(ticket)["of"].to_pylist() == [ticket[0]]
    scorers.submit(VIDEO)
    assert sent[-1][0] != slow
