"""A comparison in the terminal, as curves, and as a page that stands alone."""

from __future__ import annotations

import io
import re

import numpy as np
from rich.console import Console

from jobs.reports.comparison import ComparedRun, command_table, link_tree
from jobs.reports.comparison_report import curves_picture, loss_curve, page, terminal_table, terminal_tree

RUNS = [
    ComparedRun(
        f"{name}00000000",
        "pretrain",
        name=f"{name} <b>[red]",
        params={"global_batch": batch, "rule": "[bold]<i>"[: int(batch)]},
        metrics={"validation_top1": top1},
        output=f"/runs/{name}[red]<b>",
        data_digest="0123456789abcdef",
    )
    for name, batch, top1 in (("first", "8", 0.25), ("second", "64", 0.5))
]


def _text(renderable: object) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def test_a_curve_counts_steps_views_and_hours_of_work() -> None:
    """Hours are those of the steps, not of the clock."""
    losses, speeds = {step: 1 / step for step in range(1, 6)}, dict.fromkeys(range(1, 6), 16.0)
    curve = loss_curve(RUNS[1], losses, speeds)
    assert curve is not None
    np.testing.assert_allclose(curve.loss, [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    np.testing.assert_array_equal(curve.steps, [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(curve.views, [64, 128, 192, 256, 320])
    np.testing.assert_allclose(curve.hours, np.arange(1, 6) * 4 / 3600)
    assert loss_curve(RUNS[1], {}, {}) is None


def test_a_long_curve_is_thinned() -> None:
    curve = loss_curve(RUNS[0], dict.fromkeys(range(1, 10_001), 0.5), {})
    assert curve is not None
    assert (len(curve.steps), curve.loss.max()) == (400, 0.5)
    assert np.isnan(curve.hours).all()
    picture = curves_picture({"prepare": [], "pretrain": [curve]})
    assert picture is not None
    assert picture.startswith(b"\x89PNG")
    assert curves_picture({"prepare": []}) is None


def test_the_terminal_shows_names_as_they_are() -> None:
    text = _text(terminal_table(command_table("pretrain", RUNS)))
    assert "★ second00" in text
    assert "pretrain: 2 runs; ★ best by validation_top1" in text
    for shown in ("first <b>[red]", "global_batch", "[bold]<i", "0.25"):
        assert shown in text
    tree = _text(terminal_tree(link_tree(RUNS)))
    assert "pretrain first000 data 01234567 /runs/first[red]<b>" in tree


def test_the_page_stands_alone() -> None:
    content = page("runs", {"tracking": "sqlite:////x"}, [command_table("pretrain", RUNS)], link_tree(RUNS), b"\x89PNG")
    text = content.decode()
    assert not re.search(r"https?://|<script|<link|<b>|<i>|url\(", text)
    assert "data:image/png;base64,iVBORw"[:24] in text
    for shown in ("first000", "★ <code>second00</code>", "global_batch", "[bold]&lt;i", "/runs/first[red]&lt;b&gt;"):
        assert shown in text
    assert '<td class="best">0.5</td>' in text
    assert "<img" not in page("runs", {}, [], [], None).decode()
