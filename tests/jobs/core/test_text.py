"""Text from data: one printable line, whatever it holds."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.core.text import NOT_SHOWN, plain, shown


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("from $5 #1 to $6", "from $5 #1 to $6"),
        ("[/x] [bold]a", "[/x] [bold]a"),
        ("step 1/2  loss 0.5", "step 1/2  loss 0.5"),
        ("\x1b[2Jcleared", "\ufffd[2Jcleared"),
        ("one\r\ntwo\u2028three", "one two three"),
        ("\u202egnp.exe", "\ufffdgnp.exe"),
        ("half \ud800", "half \ufffd"),
        ("e\u200cf 👩\u200d🚀", "e\u200cf 👩\u200d🚀"),
    ],
)
def test_what_is_shown(text: str, line: str) -> None:
    assert shown(text) == line


@given(st.text(st.characters(codec=None)), st.integers(1, 50))
def test_any_text_is_one_printable_bounded_line(text: str, length: int) -> None:
    line = shown(text, length)
    assert len(line) <= length
    assert len(line.splitlines()) <= 1
    assert not {unicodedata.category(c) for c in line if c not in "\u200c\u200d"} & set(NOT_SHOWN)
    line.encode()
    assert shown(line, length) == line


def test_a_secret_is_hidden_before_the_text_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    assert shown("key hunter2hunter2", 10) == "key ***"


def test_rich_reads_no_markup_and_no_emoji_codes() -> None:
    assert plain("[red]:car:[/x]\\").plain == "[red]:car:[/x]\\"
