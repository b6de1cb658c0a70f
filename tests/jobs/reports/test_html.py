"""Pages: no value becomes markup, no secret is shown, no link leaves the known schemes."""

from __future__ import annotations

import re
import tomllib
from importlib import resources
from pathlib import Path

import pytest

from jobs.reports.html import link, render

HOSTILE = "<script>alert('x')</script>\" onclick=\"x"


def test_values_are_escaped_and_cleaned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    facts = {HOSTILE: HOSTILE, "source": "https://user:password@host/x", "key": "hunter2hunter2"}
    text = render("compare.html", title=HOSTILE, facts=facts, tables=[], links_title="links", links=[], curves=None)
    assert b"<script" not in text
    assert b'" onclick' not in text
    assert b"password" not in text
    assert b"hunter2" not in text
    assert b"https://host/x" in text


def test_a_page_allows_nothing_from_outside() -> None:
    page = render("compare.html", title="x", facts={}, tables=[], links_title="links", links=[], curves=None).decode()
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    assert "--page:" in page
    assert not re.search(r"<script|<link|url\(|@import|https?://", page)


def test_templates_escape_without_exception() -> None:
    sources = [file.read_text() for file in (resources.files("jobs.reports") / "templates").iterdir()]
    assert len(sources) >= 4
    assert not [source for source in sources if re.search(r"\|\s*safe|autoescape", source)]


def test_templates_are_in_the_wheel() -> None:
    root = Path(__file__).parents[3]
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packed = {path for pattern in settings["jobs"] for path in (root / "jobs").glob(pattern)}
    assert set((root / "jobs/reports/templates").iterdir()) <= packed


@pytest.mark.parametrize(
    ("uri", "href"),
    [
        ("/videos/a b?.mp4", "file:///videos/a%20b%3F.mp4"),
        ("file:///videos/a%20b.mp4", "file:///videos/a%20b.mp4"),
        ("s3://bucket/a.mp4", "s3://bucket/a.mp4"),
        ("https://host/a.mp4", "https://host/a.mp4"),
        ("javascript://host/%0Aalert(1)", None),
        ("javascript:alert(1)", None),
        ("data:text/html,x", None),
    ],
)
def test_links(uri: str, href: str | None) -> None:
    assert link(uri) == href
