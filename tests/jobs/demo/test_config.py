"""The demo's keys: when two ways are compared, and what is refused."""

from __future__ import annotations

import pytest

from jobs.core.config import load_config
from jobs.core.errors import UserError
from jobs.demo.config import DemoConfig


@pytest.mark.parametrize(
    ("keys", "compares"),
    [
        ([], True),
        (["media=image"], True),
        (["source=videos"], False),
        (["source=videos", "compare=true"], True),
        (["compare=false"], False),
    ],
)
def test_what_the_demo_makes_is_compared_and_own_videos_on_request(keys: list[str], compares: bool) -> None:
    assert load_config(DemoConfig, "demo", keys).compares is compares


@pytest.mark.parametrize("key", ["videos=79", "labels=0", "difficulty=1.1", "difficulty=-1"])
def test_a_wrong_value_is_refused_with_a_remedy(key: str) -> None:
    with pytest.raises(UserError, match=rf"{key}.*must .*; use "):
        load_config(DemoConfig, "demo", [key])
