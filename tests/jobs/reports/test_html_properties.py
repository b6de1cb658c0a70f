"""Names of classes, runs and files are whatever a stranger wrote: on every printer, picture and page they are text."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from jobs.core import cli
from jobs.core.clean_stderr import CleanRecord
from jobs.core.config import config_yaml
from jobs.demo.config import DemoConfig
from jobs.demo.report_page import DoneStage
from jobs.demo.report_page import page as demo_page
from jobs.doctor.findings import Finding, as_json, as_table, found
from jobs.reports.comparison import ComparedRun, command_table, link_tree
from jobs.reports.comparison_report import curves_picture, loss_curve, page, terminal_table, terminal_tree
from jobs.reports.confusion import confused_pairs_picture, confusion_picture
from jobs.reports.html import link
from jobs.reports.plots import Cell, captioned_image, contact_sheet
from jobs.reports.prepared_set import class_table, rejected_table
from jobs.reports.tag_page import VIDEO_COLUMNS
from jobs.reports.tag_page import page as tag_page
from jobs.reports.tag_thumbnails import Shown
from jobs.submit import followed_job
from jobs.sweep.results import summary_table
from pipeline.tagging.schema import VIDEO_SCHEMA

HOSTILE = (
    "from $5 #1 to $6", "[/x]", "[bold", "\\[red]\\", ":car:", "\x1b]0;title\x07", "a\nb\r", "\ud800", "_hidden", "",
    "javascript:alert(1)", "javascript://%0aalert(1)", "<script>'\"</script>", "{{ 7 * 7 }}", "x" * 3_000, "\u202e",
    "$\\broken{",
)  # fmt: skip
ANY_TEXT = st.sampled_from(HOSTILE) | st.text(st.characters(codec=None), max_size=30)
# What Arrow can store: its text is UTF-8.
STORED_TEXT = ANY_TEXT.map(lambda text: text.encode(errors="replace").decode())
SCHEMES = ("file:///", "s3://")
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
FONT_LACKS_IT = pytest.mark.filterwarnings("ignore:Glyph .* missing from font", "ignore:.*constrained_layout")


def printed(*renderables: Any) -> str:
    """Of a terminal without colours, so that a control character can only be the data's."""
    console = Console(width=100, file=io.StringIO(), force_terminal=False)
    console.print(*renderables, sep="\n")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def compared(text: str) -> list[ComparedRun]:
    facts: dict[str, Any] = {"command": text, "name": text, "status": text, "output": text, "data_digest": text}
    return [
        ComparedRun(f"{text}{top1}", params={text: str(top1)}, metrics={f"top1 {text}": top1}, **facts)
        for top1 in (0.25, 0.5)
    ]


@given(ANY_TEXT)
def test_tables_of_runs_and_sweeps(text: str) -> None:
    runs = compared(text)
    rows = [{"optimizer.x": text, "state": text, text: 0.5}, {"optimizer.x": "b", "state": "done", text: 0.25}]
    tables = terminal_table(command_table(text, runs)), terminal_tree(link_tree(runs))
    assert not CONTROL.search(printed(*tables, summary_table(text, ["optimizer.x"], rows)))


@given(STORED_TEXT)
def test_tables_of_a_prepared_set(text: str) -> None:
    stored = pa.table({"label": [text, None], "split": [text, "val"], "clips": [1, 2]})
    rejected = pa.table({"reason": [text], "uri": [f"/{text}"], "message": [text]})
    assert not CONTROL.search(printed(class_table(stored), rejected_table(rejected)))


@given(ANY_TEXT)
def test_lines_and_reports(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        lines, report = Console(file=io.StringIO()), Console(width=100, file=io.StringIO())
        patch.setattr(cli, "console", lines)
        patch.setattr(cli, "Console", lambda: report)
        cli.echo(text, warning=True)
        cli.print_report(text, {text: text, "uri": f"s3://{text}", "path": f"/{text}", "counts": {text: 1}})
        for console in (lines, report):
            assert isinstance(console.file, io.StringIO)
            assert not CONTROL.search(console.file.getvalue())
        assert isinstance(lines.file, io.StringIO)
        assert lines.file.getvalue().count("\n") == 1


@given(ANY_TEXT)
def test_findings_of_the_doctor(text: str) -> None:
    findings = [Finding(text, text, False, text, text), found(text, text, True, text, text)]
    assert not CONTROL.search(printed(as_table(findings)))
    assert json.loads(as_json(findings))["findings"][0]["host"] == text
    assert as_json(findings).isascii()


@given(ANY_TEXT)
def test_logs_of_libraries_and_of_other_machines(text: str) -> None:
    """A record of whatever library, and the log of a job in a cluster."""
    record = CleanRecord("library", logging.WARNING, "f.py", 1, "%s", (text,), None)
    assert not CONTROL.search(record.getMessage())
    assert "\n" not in record.getMessage()
    console = Console(file=io.StringIO(), force_terminal=False)

    class Client:
        async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
            yield f"{text}\n{text}"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "Console", lambda: console)
        followed_job.print_log(Client(), "job")  # type: ignore[arg-type]
    assert isinstance(console.file, io.StringIO)
    assert not CONTROL.search(console.file.getvalue())


@given(STORED_TEXT)
def test_a_configuration_that_is_printed(text: str) -> None:
    """``--print-config`` of a stranger's recipe, and ``config.yaml``; `load_config` refuses what is no Unicode."""
    printed_config = config_yaml(DemoConfig(source=text))
    assert not CONTROL.search(printed_config)
    assert printed_config.encode()


@FONT_LACKS_IT
@settings(max_examples=8)
@given(ANY_TEXT)
@example("from $5 #1 to $6")
def test_pictures(text: str) -> None:
    counts = torch.tensor([[1, 2], [3, 4]])
    curve = loss_curve(compared(text)[0], {1: 0.5, 2: 0.25}, {})
    assert curve is not None
    pictures = (
        confusion_picture(counts, [text, "b"]),
        confused_pairs_picture(counts, ["a", text]),
        curves_picture({text: [curve]}),
        contact_sheet([Cell(text, None)]),
        captioned_image(np.zeros((20, 400, 3), np.uint8), text),
    )
    assert all(picture is not None and picture.startswith(b"\x89PNG") for picture in pictures)


@given(STORED_TEXT)
def test_pages(text: str) -> None:
    span = {"label": text, "start_seconds": 0.0, "end_seconds": 1.0, "score": 0.5}
    video = {
        "uri": text, "duration_seconds": 2.0, "windows": 2, "status": text, "error_class": text, "message": text,
        "labels": [text], "scores": [0.5], "spans": [span],
    }  # fmt: skip
    table = pa.Table.from_pylist([video], schema=pa.schema([VIDEO_SCHEMA.field(name) for name in VIDEO_COLUMNS]))
    figures = ("videos", "windows", "windows_per_second", "seconds", "failed_videos", "attempts_lost")
    runs = compared(text)
    stages = [DoneStage(text, text, 1.0, text), DoneStage(text, text, None, f"/{text}")]
    demo = demo_page(DemoConfig(source=text), Path("/nowhere"), text, {text: text, "minutes": 1.0}, stages)
    for content in (
        demo,
        tag_page(text, dict.fromkeys(figures, 1), table, [Shown(video, b"picture")], {text: text}),
        page(text, {text: text}, [command_table(text, runs)], link_tree(runs), None),
    ):
        markup = content.decode()
        assert markup.count("Content-Security-Policy") == 1
        assert not CONTROL.search(markup)
        assert not re.search(r"<script|<[^>]* on\w+=", markup)
        targets = re.findall(r'href="([^"]*)', markup)
        assert all(target.lower().startswith(SCHEMES) for target in targets)


@given(ANY_TEXT)
def test_links_leave_no_known_scheme(text: str) -> None:
    for uri in (text, f"/{text}", f"javascript:{text}", f"s3://{text}", f"file://{text}"):
        href = link(uri)
        assert href is None or href.lower().startswith(SCHEMES)
