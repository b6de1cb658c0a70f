"""docs/planning.md: its tables are those of the calculator, its picture is small."""

from __future__ import annotations

from tests.support.planning_page import PAGE, PICTURE, page


def test_the_tables_are_those_of_the_calculator() -> None:
    assert PAGE.read_text() == page(), "run `python -m tests.support.planning_page`"


def test_the_picture_is_small() -> None:
    assert 10_000 < PICTURE.stat().st_size < 100_000
