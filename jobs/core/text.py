"""Text from data is never markup: names of classes, files and runs, and libraries' messages about them, as they may be
shown on a terminal, in a log, on a picture or a page."""

from __future__ import annotations

import re
import unicodedata

from rich.text import Text

from jobs.core.redaction import without_secrets

NAME_LENGTH, LINE_LENGTH, TEXT_LENGTH = 80, 2_000, 10_000
CUT = "…"
# Control characters (ESC starts a terminal's commands), invisible ones that reorder text, halves of a surrogate pair
# (not encodable), private and unassigned ones, separators of lines and paragraphs.
NOT_SHOWN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
JOINERS = "\u200c\u200d"  # of scripts and of emoji
BREAKS = re.compile(r"[\t-\r\x1c-\x1f\x85\u2028\u2029]+")
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def shown(text: object, length: int = TEXT_LENGTH) -> str:
    """One line of printable text of at most ``length`` characters, without secrets."""
    # Cleaned before it is cut: half of a secret would not be recognised.
    line = BREAKS.sub(" ", without_secrets(str(text)).strip("\r\n"))
    printable = "".join(c if _is_printable(c) else REPLACEMENT for c in line[: length + 1])
    return printable if len(printable) <= length else printable[: length - 1] + CUT


def printable_lines(text: str) -> str:
    """Printable text of several lines, without secrets: a traceback, whose line ends are its own."""
    return "\n".join(shown(line) for line in without_secrets(text).rstrip("\n").split("\n"))


def printable_part(text: str) -> str:
    """Printable text of a part of a stream, which may begin and end within a line, without secrets."""
    return "\n".join(shown(line) for line in text.split("\n"))


def plain(text: object, style: str = "", length: int = LINE_LENGTH) -> Text:
    """For rich, which reads markup and emoji codes in every `str`."""
    return Text(shown(text, length), style)


def _is_printable(character: str) -> bool:
    return character in JOINERS or unicodedata.category(character) not in NOT_SHOWN
