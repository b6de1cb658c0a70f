"""docs/reproduction.md: generated from the recipes, with arguments that the commands accept."""

from __future__ import annotations

import re

import pytest

from jobs.core.config import load_config
from jobs.evaluate import EvaluateConfig
from jobs.sweeping.plan import COMMANDS, plan_children, read_arguments
from tests.support.reproduction import PAGE, ablations, gpu_hours, main_rows, text

HOURS = re.compile(r"[\d.,]+ \+ [\d.,]+ \+ [\d.,]+ \||[\d.]+ GPU hours")


def test_the_page_is_what_its_script_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the hours: counting the arithmetic of all models takes a minute."""
    monkeypatch.setattr("tests.support.reproduction.multiply_adds", lambda _: 10**12)
    assert HOURS.sub("", PAGE.read_text()) == HOURS.sub("", text()), "run `python -m tests.support.reproduction`"


@pytest.mark.faults
def test_the_hours_are_those_of_the_recipes() -> None:
    assert PAGE.read_text() == text(), "the recipes changed: run `python -m tests.support.reproduction`"


def test_every_command_is_taken() -> None:
    commands = re.findall(r"`python -m jobs\.([^`]+)`", PAGE.read_text())
    assert len(commands) > 50
    for command in commands:
        name, *arguments = command.replace("$", "/").split()
        if name == "sweep":
            assert len(plan_children(read_arguments(arguments))) > 1
        else:
            load_config(COMMANDS[name], name, arguments)


def test_hours_are_views_times_arithmetic() -> None:
    """Large on Kinetics-400 by hand: 99.4 GMAC a view in pretraining, 412.7 in fine-tuning (paper Tab. 2)."""
    large = next(row for row in main_rows() if row.finetune == ("k400_large",))
    speed = 312e12 * 0.35 * 3600
    assert gpu_hours(large) == pytest.approx(
        (
            3200 * 240_258 * 99.42e9 * 6 / speed,
            100 * 240_258 * 412.67e9 * 6 / speed,
            19_818 * 15 * 412.67e9 * 2 / speed,
        ),
        rel=1e-3,
    )
    ratios = next(row for row in ablations() if "mask ratio" in row.what)
    assert gpu_hours(ratios)[1] == pytest.approx(3 * gpu_hours(large)[1])


def test_the_protocols_are_the_papers() -> None:
    views = {row.evaluate: "2×3" if "two" in row.evaluate else row.what for row in main_rows()}
    for recipe, what in views.items():
        protocol = load_config(EvaluateConfig, "evaluate", [recipe, "data=d", "init=i", "output=o"]).views
        assert f"{protocol.clips}×{protocol.crops}" in what
