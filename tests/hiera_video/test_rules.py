"""A config is checked by its rules in their order."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from hiera_video.rules import Checked, Rules


@dataclass(frozen=True)
class Halves(Checked):
    size: int = 8
    parts: int = 2
    even: bool = True

    def rules(self) -> Rules:
        yield "parts", self.parts > 0, "must be positive; use 2"
        yield "size", self.size % self.parts == 0, f"must be a multiple of parts={self.parts}; use {self.parts}"
        yield "even", self.even or self.size == 1, "may be false for size=1 only; leave it out"


def test_values_that_follow_the_rules_are_taken() -> None:
    assert Halves(size=6, parts=3).size == 6
    assert Halves(size=1, parts=1, even=False).even is False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 7}, r"^size=7: must be a multiple of parts=2; use 2$"),
        ({"even": False}, r"^even=false: may be false for size=1 only; leave it out$"),  # as it is written in YAML
        ({"size": 7, "even": False}, r"^size=7: "),
    ],
)
def test_the_first_rule_that_is_broken_is_named(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(Halves(), **changes)


def test_a_rule_may_rely_on_those_before_it() -> None:
    """Without the order this would be a division by zero."""
    with pytest.raises(ValueError, match=r"^parts=0: must be positive; use 2$"):
        Halves(parts=0)
