"""The pages that people read, and what is in them: links, code blocks, inline code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# Generated pages have tests of their own.
PAGES = sorted(
    path.relative_to(REPOSITORY)
    for path in (REPOSITORY / "README.md", REPOSITORY / "infra" / "README.md", *(REPOSITORY / "docs").glob("*.md"))
    if path.name != "reproduction.md"
)
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
RUN_ELSEWHERE = re.compile(r"<!-- [^>]*: (?P<test>tests/\S+\.py) -->\n$")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    language: str
    text: str
    tested_by: str | None
    """The test that runs it, named in a comment before the block; None: the tests of the page do."""


def read(page: Path) -> str:
    """The text of a page."""
    return (REPOSITORY / page).read_text()


def blocks(page: Path, language: str) -> list[Block]:
    """The fenced blocks of a page in one language, in their order."""
    text = read(page)
    found = []
    for match in FENCE.finditer(text):
        if match["language"] == language:
            comment = RUN_ELSEWHERE.search(text[: match.start()])
            found.append(Block(page, language, match["text"], comment["test"] if comment else None))
    return found


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", read(page))


def inline_code(page: Path) -> Iterator[str]:
    """What stands between backticks in the prose of a page, and in its tables."""
    for match in re.finditer(r"`([^`\n]+)`", prose(page)):
        yield match[1]


def shell_lines(page: Path) -> Iterator[str]:
    """The commands of a page's shell blocks, a continued line as one."""
    for block in blocks(page, "shell"):
        for line in block.text.replace("\\\n", " ").splitlines():
            command = line.partition("  #")[0].strip()
            if command and not command.startswith("#"):
                yield command
