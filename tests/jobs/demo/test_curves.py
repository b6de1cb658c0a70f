"""The curves of both ways: every journal's points, as far as it has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from jobs.demo import curves
from jobs.reports.plots import Panel
from tests.support.demo_output import LOSSES, write_demo


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[Panel]]:
    """What is drawn, a list for each row."""
    rows: list[list[Panel]] = []

    def draw(panels: Sequence[Sequence[Panel]]) -> bytes:
        rows.extend(list(row) for row in panels)
        return b"picture"

    monkeypatch.setattr(curves, "curve_panels", draw)
    return rows


def test_both_ways_stand_in_one_panel(drawn: list[list[Panel]], tmp_path: Path) -> None:
    write_demo(tmp_path, scratch=0.75, pretrained=0.5)
    assert curves.curves_picture(tmp_path) == b"picture"
    (pretraining, probe), (losses, accuracy) = drawn
    assert pretraining.lines == {"training": ([1, 2, 3, 4], [*LOSSES]), "held out": ([2, 4], [0.4, 0.4])}
    assert probe.lines == {"probe": ([2, 4], [0.3, 0.3])}
    assert set(losses.lines) == {"from scratch", "pretrained"}
    assert accuracy.lines == {"from scratch": ([2, 4], [0.75, 0.75]), "pretrained": ([2, 4], [0.5, 0.5])}


def test_without_labels_pretraining_stands_alone(drawn: list[list[Panel]], tmp_path: Path) -> None:
    write_demo(tmp_path, scratch=None, pretrained=None)
    assert curves.curves_picture(tmp_path) == b"picture"
    assert [[panel.title.partition(":")[0] for panel in row] for row in drawn] == [["pretraining", "pretraining"]]


def test_nothing_is_drawn_of_nothing(drawn: list[list[Panel]], tmp_path: Path) -> None:
    assert curves.curves_picture(tmp_path) is None
    assert not drawn
