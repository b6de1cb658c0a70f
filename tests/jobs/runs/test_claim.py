"""One output, one run: of racing starts one claims, a claim that work depends on stays, differences are listed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs.core.errors import UserError
from jobs.runs import claim as claims
from jobs.runs.claim import claim_output, new_claim, read_claim, refuse_difference, release_output
from jobs.runs.fencing import acquire_token


@dataclass(frozen=True)
class Settings:
    """A configuration."""

    seed: int = 0
    workers: int = 1


def test_the_same_command_again_finds_its_claim(tmp_path: Path) -> None:
    output = str(tmp_path / "run")
    assert read_claim(output, Settings()) is None
    first = claim_output(output, Settings(), pins={"data_version": 3})
    again = claim_output(output, Settings(workers=8), pins={"data_version": 4})
    assert not first.resumed
    assert again.resumed
    assert (again.run_key, again.pins) == (first.run_key, first.pins)
    assert again.pins["data_version"] == 3
    assert read_claim(output, Settings()) == again


def test_another_configuration_is_refused_with_every_difference(tmp_path: Path) -> None:
    claim_output(str(tmp_path), Settings())
    difference = r"another configuration \(seed: existing 0, now 7\); give the existing values to resume"
    with pytest.raises(UserError, match=difference):
        claim_output(str(tmp_path), Settings(seed=7))


def test_differences_name_keys_of_either_side() -> None:
    refuse_difference("o", {"a": 1}, {"a": 1})
    with pytest.raises(
        UserError, match=r"^output=o: holds b \(a: existing 1, now None; c: existing None, now 'x'\); go$"
    ):
        refuse_difference("o", {"a": 1}, {"c": "x"}, holds="holds b", remedy="go")


def test_racing_starts_agree_on_one_claim(tmp_path: Path) -> None:
    """All of them have found no claim before the first one is written."""
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: new_claim(str(tmp_path), Settings(), {"number": number}), range(8)))
    assert len({claim.run_key for claim in found}) == len({claim.pins["number"] for claim in found}) == 1
    assert [claim.resumed for claim in found].count(False) == 1


def test_an_output_that_cannot_be_written_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match="cannot be written"):
        new_claim(str(tmp_path / "file"), Settings(), {})


def test_a_new_claim_is_released_and_one_that_work_depends_on_stays(tmp_path: Path) -> None:
    output = str(tmp_path)
    release_output(output, claim_output(output, Settings()))
    assert read_claim(output, Settings(seed=1)) is None
    claim = claim_output(output, Settings(seed=1))
    release_output(output, claim_output(output, Settings(seed=1)))  # not its own
    acquire_token(output)
    release_output(output, claim)  # another start of the same command works here by now
    assert read_claim(output, Settings(seed=1))


def test_a_claim_released_between_two_looks_is_free_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, real, lost = str(tmp_path), claims.write_if_absent, list[bool]()

    def lose_once(uri: str, content: bytes) -> Any:
        lost.append(True)
        return len(lost) > 1 and real(uri, content)

    monkeypatch.setattr(claims, "write_if_absent", lose_once)
    assert not new_claim(output, Settings(), {}).resumed


@dataclass(frozen=True)
class TagConfig:
    """Another command's configuration: no key in common."""

    source: str = "/videos"


def test_an_output_of_another_command_is_refused_in_one_clause(tmp_path: Path) -> None:
    claim_output(str(tmp_path), TagConfig())
    for resume in (claim_output, read_claim):
        with pytest.raises(UserError, match=rf"^output={tmp_path}: holds a tag run; choose another output$"):
            resume(str(tmp_path), Settings())
