"""The demo's page: both accuracies as they came out, every picture that there is, and commands that can be copied."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from jobs.demo.config import DemoConfig
from jobs.demo.report_page import Way, compared_ways, difference, verdict, write_page
from tests.support.demo_output import REPORT, write_demo


def written(output: Path, **keys: str) -> str:
    paths = write_page(DemoConfig(output=str(output), **keys), output, str(output / "videos"), REPORT)  # type: ignore[arg-type]
    assert [*paths] == ["curves", "open this first"]
    assert paths["open this first"] == f"{output}/report.html"
    return (output / "report.html").read_text()


def text_of(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<style.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)).split())


def test_both_accuracies_and_the_number_of_labels_are_shown(tmp_path: Path) -> None:
    write_demo(tmp_path, scratch=0.75, pretrained=0.5)
    text = text_of(written(tmp_path))
    assert "from scratch pretrained top-1 on held-out clips 75.0% 50.0%" in text
    assert "labelled training clips 160 160" in text
    assert "Pretrained minus from scratch: -25.0 ± 11.5 points" in text
    assert "within what chance" not in text


def test_pictures_are_inside_and_paths_whole(tmp_path: Path) -> None:
    output = tmp_path / ("a long folder name " * 6)
    write_demo(output)
    page = written(output)
    assert page.count("data:image/png;base64,") == 4
    for name in ("curves.png", "pretrain/reconstructions.png", "tag/report.html", "finetune_scratch"):
        assert f'<code class="whole">{output}/{name}</code>' in page
        assert f'href="file://{str(output).replace(" ", "%20")}/{name}"' in page


def test_every_stage_has_its_command_and_one_that_was_left_out_says_so(tmp_path: Path) -> None:
    write_demo(tmp_path, scratch=None)
    page = text_of(written(tmp_path, source=str(tmp_path)))
    for name in ("prepare", "pretrain", "finetune", "evaluate", "tag"):
        assert f"python -m jobs.{name} demo " in page
    assert "from scratch" not in page.partition("What was done")[2].partition("Numbers")[0]
    fewer = {key: value for key, value in REPORT.items() if key != "tag seconds"}
    write_page(DemoConfig(output=str(tmp_path)), tmp_path, "/videos", fewer)
    assert "tag left out python -m jobs.tag" in text_of((tmp_path / "report.html").read_text())


def test_without_labels_there_is_nothing_to_compare(tmp_path: Path) -> None:
    write_demo(tmp_path, scratch=None, pretrained=None)
    assert "From scratch beside pretrained" not in written(tmp_path)


@pytest.mark.parametrize(("pretrained", "chance"), [(0.75, True), (0.8, True), (0.95, False), (0.3, False)])
def test_the_verdict_says_what_came_out(pretrained: float, chance: bool, tmp_path: Path) -> None:
    write_demo(tmp_path, scratch=0.75, pretrained=pretrained)
    first, *_ = verdict(list(compared_ways(tmp_path)))
    assert f"{100 * (pretrained - 0.75):+.1f} ±" in first
    assert ("within what chance explains" in first) == chance


def test_the_interval_by_hand() -> None:
    """Shares of 0.5 of 100 clips each: 1.96 · √(0.25/100 + 0.25/100) = 13.9 points."""
    ways = [Way(name, {}, {"top1": 0.5, "images_scored": 100}) for name in ("from scratch", "pretrained")]
    assert difference(*ways) == pytest.approx((0.0, 13.859), abs=1e-3)
