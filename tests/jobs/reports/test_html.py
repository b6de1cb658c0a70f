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


def test_only_the_page_with_a_script_permits_one() -> None:
    """And it permits that script alone, by its hash."""
    folder = resources.files("jobs.reports") / "templates"
    pages = {file.name: file.read_text() for file in folder.iterdir() if file.name.endswith(".html")}
    assert {name for name, source in pages.items() if "<script" in source} == {"suggest.html"}
    assert {name for name, source in pages.items() if "script-src" in source} == {"suggest.html"}
    assert pages["suggest.html"].count("<script>{{ code }}</script>") == pages["suggest.html"].count("<script") == 1
    assert "; script-src '{{ code|csp_hash }}'" in pages["suggest.html"]


def test_templates_escape_without_exception() -> None:
    sources = [file.read_text() for file in (resources.files("jobs.reports") / "templates").iterdir()]
    assert len(sources) >= 4
    assert not [source for source in sources if re.search(r"\|\s*safe|autoescape", source)]


def test_every_page_has_the_policy_and_checked_links() -> None:
    """The policy stands in the head of all pages, before anything that it restricts; no page is made by hand."""
    folder = resources.files("jobs.reports") / "templates"
    pages = {file.name: file.read_text() for file in folder.iterdir() if file.name.endswith(".html")}
    shared = pages.pop("page.html")
    assert shared.index("Content-Security-Policy") < min(map(shared.index, ("<title", "<style", "<body")))
    parts = {"windows.html": pages["windows.html"]}  # macros that pages import: nothing else, and no page by themselves
    assert not any(re.sub(r"{% macro .*?{% endmacro %}\s*", "", source, flags=re.DOTALL) for source in parts.values())
    whole = [source for name, source in pages.items() if name not in parts]
    assert all(source.startswith('{% extends "page.html" %}') for source in whole)
    values = re.findall(r'\b(href|src|action|srcset|data|poster)="([^"]*)"', "".join([shared, *pages.values()]))
    assert {name: "|link }}" in value or "|data_uri(" in value for name, value in values} == {"href": True, "src": True}
    package = Path(__file__).parents[3] / "jobs"
    assert not [path for path in package.rglob("*.py") if re.search(r"<html|<body|<a ", path.read_text())]


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
        ("https://host/a.mp4", None),
        ("http://host/a.mp4", None),
        ("FILE:///videos/a.mp4", "FILE:///videos/a.mp4"),
        ("file:/videos/a.mp4", None),
        ("vbscript:x", None),
        ("file://host/share/a.mp4", None),
        ("file:////host/share", None),
        ("file:///\\\\host\\share", None),
        ("//host/share/a.mp4", "file:///host/share/a.mp4"),
        ("javascript://host/%0Aalert(1)", None),
        ("javascript:alert(1)", None),
        ("data:text/html,x", None),
    ],
)
def test_links(uri: str, href: str | None) -> None:
    assert link(uri) == href
