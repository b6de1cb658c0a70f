"""How many workers fit, beside the CPUs that the stream of data needs."""

from __future__ import annotations

import pytest

from jobs.room import most_that_fit


@pytest.mark.parametrize(
    ("permitted", "free", "gpus", "fitting"),
    [
        (range(1, 3), {"CPU": 4.0}, False, 2),
        (range(1, 3), {"CPU": 2.0}, False, 1),  # two would leave no CPU for decoding
        (range(2, 3), {"CPU": 2.0}, False, 0),
        (range(1, 9), {"CPU": 64.0, "GPU": 4.0}, True, 4),
        (range(1, 9), {"CPU": 0.5, "GPU": 4.0}, True, 0),  # decoding has no room
        (range(1, 3), {}, False, 0),
    ],
)
def test_most_that_fit(permitted: range, free: dict[str, float], gpus: bool, fitting: int) -> None:
    assert most_that_fit(permitted, free, 1.0, gpus=gpus) == fitting
