"""docs/reproduction.md: generated from the recipes, with arguments that the commands accept."""

from __future__ import annotations

import re

import pytest

from jobs.core.config import load_config
from jobs.evaluate import EvaluateConfig
from jobs.sweep.plan import COMMANDS, plan_children, read_arguments
from tests.support.reproduction import PAGE, ablations, commands, gpu_hours, image_rows, main_rows, steps, text

HOURS = re.compile(r"[\d.,]+ \+ [\d.,]+ \+ [\d.,]+ \||[\d.]+ GPU hours")


def test_the_page_is_what_its_script_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the hours: counting the arithmetic of all models takes a minute."""
    monkeypatch.setattr("tests.support.reproduction.multiply_adds", lambda _: 10**12)
    assert HOURS.sub("", PAGE.read_text()) == HOURS.sub("", text()), "run `python -m tests.support.reproduction`"


@pytest.mark.slow
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
    rows = [*main_rows(), *image_rows()]
    views = {row.evaluate: "2×3" if "two" in row.evaluate else row.what for row in rows}
    for recipe, what in views.items():
        protocol = load_config(EvaluateConfig, "evaluate", [recipe, "data=d", "init=i", "output=o"]).views
        assert f"{protocol.clips}×{protocol.crops}" in what


def test_hours_of_images() -> None:
    """Base on ImageNet by hand: 4.80 + 5.12 GMAC a view in pretraining, 9.40 in fine-tuning (paper §A, Tab. 8)."""
    base = next(row for row in image_rows() if row.finetune == ("in1k_base",))
    speed = 312e12 * 0.35 * 3600
    assert gpu_hours(base) == pytest.approx(
        (
            1600 * 1_281_167 * 9.92e9 * 6 / speed,
            100 * 1_281_167 * 9.40e9 * 6 / speed,
            50_000 * 9.40e9 * 2 / speed,
        ),
        rel=5e-3,
    )


def test_from_scratch_nothing_is_pretrained() -> None:
    row = next(row for row in image_rows() if not row.pretrain)
    assert [command.split()[2] for command in commands(row)] == ["jobs.finetune", "jobs.evaluate"]
    assert "init=" not in commands(row)[0]
    assert steps(row) == ([0], 187_671)  # 300 epochs of 1,281,167 at 2,048
    assert gpu_hours(row)[0] == 0
