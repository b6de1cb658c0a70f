"""Links between pages, to pictures and to headings lead somewhere, without building the site."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.support.pages import PAGES, REPOSITORY, prose, read

LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")


class _Loader(yaml.SafeLoader):
    """MkDocs's own tags (`!ENV`, Python names) are of no interest here."""


_Loader.add_multi_constructor("", lambda _loader, _suffix, _node: None)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as MkDocs and GitHub make them of plain words."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "")).strip().lower().replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Links of a page whose file or heading does not exist; links to other hosts are left out."""
    broken = []
    for match in LINK.finditer(prose(page)):
        target = match["target"]
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = (REPOSITORY / page.parent / file).resolve() if file else REPOSITORY / page
        missing_anchor = anchor and there.suffix == ".md" and anchor not in anchors(there.relative_to(REPOSITORY))
        if not there.exists() or missing_anchor:
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_and_a_broken_anchor_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.md").write_text("# One\n[x](b.md) [y](#two) [z](#one) [w](c.md) [v](c.md#one) ![p](p.svg)")
    (tmp_path / "c.md").write_text("# Two\n")
    monkeypatch.setattr("tests.docs.test_links.REPOSITORY", tmp_path)
    monkeypatch.setattr("tests.support.pages.REPOSITORY", tmp_path)
    assert broken_links(Path("a.md")) == ["b.md", "#two", "c.md#one", "p.svg"]


def test_every_page_is_in_the_navigation_once() -> None:
    configuration = yaml.load((REPOSITORY / "mkdocs.yml").read_text(), _Loader)
    listed = sorted(_pages_of(configuration["nav"]))
    docs = REPOSITORY / "docs"
    assert listed == sorted(str(path.relative_to(docs)) for path in docs.rglob("*.md"))


def _pages_of(node: object) -> list[str]:
    if isinstance(node, str):
        return [node]
    children = node if isinstance(node, list) else node.values() if isinstance(node, dict) else []
    return [page for child in children for page in _pages_of(child)]


@pytest.mark.parametrize("package", ["hiera_video", "pipeline"])
def test_every_public_subpackage_has_a_reference_page(package: str) -> None:
    folders = {path.parent.name for path in (REPOSITORY / package).glob("*/__init__.py")}
    described = {path.stem.partition(".")[2] for path in (REPOSITORY / "docs" / "api").glob(f"{package}.*.md")}
    assert folders <= described
    assert all((REPOSITORY / package / name).exists() or (REPOSITORY / package / f"{name}.py").exists()
               for name in described)  # fmt: skip


def test_the_readme_fits_on_two_screens() -> None:
    assert len(read(Path("README.md")).splitlines()) <= 100
