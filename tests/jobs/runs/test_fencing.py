"""One writer for one output: the newest start wins, everybody else finds out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.runs.fencing import SupersededError, acquire_token, records


def test_the_newest_start_takes_over_and_the_older_one_says_so(tmp_path: Path) -> None:
    first = acquire_token(str(tmp_path))
    first.check()
    second = acquire_token(str(tmp_path))
    assert (first.generation, second.generation) == (1, 2)
    with pytest.raises(SupersededError, match=r"taken over \(generation 2, process \d+ on .*generation 1 stops"):
        first.check()
    second.check()


def test_a_program_renews_its_lease_unless_another_was_faster(tmp_path: Path) -> None:
    first = acquire_token(str(tmp_path))
    next_generation = first.next_generation()
    assert next_generation.generation == 2
    assert first.superseded_by()
    next_generation.check()
    acquire_token(str(tmp_path))
    with pytest.raises(SupersededError, match="generation 3"):
        next_generation.next_generation()


def test_racing_starts_get_different_attempts(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        tokens = list(pool.map(lambda _: acquire_token(str(tmp_path)), range(24)))
    assert sorted(token.generation for token in tokens) == list(range(1, 25))
    assert [token.generation for token in tokens if not token.superseded_by()] == [24]


@pytest.mark.parametrize("number", ["99999999", "000099999999", "999999999999"])
def test_a_forged_number_is_left_out(number: str, tmp_path: Path) -> None:
    """Starts count on by one; a number far above would otherwise be the newest for ever."""
    output = str(tmp_path)
    assert acquire_token(output).generation == 1
    (tmp_path / "generations" / f"{number}.json").write_text("{}")
    for expected in (2, 3):
        assert acquire_token(output).generation == expected
    assert [record["generation"] for record in records(output)] == [3, 2, 1]


@pytest.mark.parametrize("content", ["", "[", "[" * 50_000, "7", '{"pid": []}'])
def test_a_damaged_record_counts_by_its_number(content: str, tmp_path: Path) -> None:
    output = str(tmp_path)
    token = acquire_token(output)
    (tmp_path / "generations" / "00000002.json").write_text(content)
    with pytest.raises(SupersededError, match="generation 2, process"):
        token.check()
    assert acquire_token(output).generation == 3
