"""Every recipe resolves to what it did; see `tests.jobs.recipes.golden` for a change that is meant."""

from __future__ import annotations

import json

import pytest

from jobs.sweeping.plan import COMMANDS
from tests.jobs.recipes.golden import GOLDEN, recipes_of


@pytest.mark.parametrize("command", COMMANDS)
def test_recipes_are_the_golden_ones(command: str) -> None:
    assert recipes_of(command) == json.loads(GOLDEN.read_text())[command]


def test_every_public_name_is_there() -> None:
    sizes = ("base", "base_plus", "large", "huge")
    names = {f"{name}_{size}" for name in ("k400", "k600", "k700", "ssv2") for size in sizes}
    chains = {f"k400_to_ssv2_{size}" for size in sizes} | {"ssv2_large_32frames"}
    golden = {command: set(recipes) - {"(defaults)"} for command, recipes in json.loads(GOLDEN.read_text()).items()}
    assert golden["pretrain"] == names | {"demo", "kinetics", "ssv2"}
    assert golden["finetune"] == golden["pretrain"] | chains
    assert golden["evaluate"] == {"demo", "k400", "k600", "k700", "ssv2", "ssv2_two_clips"}
    assert golden["prepare"] == golden["tag"] == {"demo"}
