"""What both training phases configure: values against their rules."""

from __future__ import annotations

import pytest

from jobs.core.config import load_config
from jobs.core.errors import UserError
from jobs.training.steps.pretrain import PretrainConfig


def config(*keys: str) -> PretrainConfig:
    return load_config(PretrainConfig, "pretrain", ["data=d", "output=o", "steps=3", *keys])


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("workers=3", r"workers=3: must divide global_batch / micro_batch = 64; use one of 1, 2, 4"),
        ("workers=[5,7]", r"workers=\[5, 7\]: one of its numbers must divide global_batch / micro_batch = 64; use"),
        ("workers=[2,1]", r"must be a whole number of at least 1, or \[fewest, most\]"),
        ("workers=two", "must be a whole number of at least 1"),
        ("hang_minutes=0", "hang_minutes=0.0: must be positive"),
        ("decode_actors=0", "decode_actors=0: must be 1 or more; use auto"),
        ("checkpoint.keep=0", "checkpoint.keep=0: must be at least 1"),
    ],
)
def test_wrong_values_are_refused(key: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(key)


def test_compiling_and_zero_3_exclude_each_other() -> None:
    with pytest.raises(UserError, match="compile=true: cannot be used with zero_stage=3"):
        config("compile=true", "zero_stage=3")


def test_every_permitted_number_of_workers() -> None:
    assert list(config("workers=[1,2]").worker_numbers) == [1, 2]
    assert list(config("workers=4").worker_numbers) == [4]
    assert list(config("workers=[3,20]").worker_numbers) == [4, 8, 16]


def test_the_recipes_for_many_gpus_are_elastic_in_powers_of_two() -> None:
    """2,048 views of one step: in micro-batches of 8 (Large) or 16 (Base)."""
    assert recipe("k400_large", "workers=[4,8]").worker_numbers == (4, 8)
    assert recipe("k400_large", "workers=[8,64]").worker_numbers == (8, 16, 32, 64)
    assert recipe("k400_base", "workers=64").worker_numbers == (64,)


def recipe(name: str, *keys: str) -> PretrainConfig:
    return load_config(PretrainConfig, "pretrain", [name, "data=d", "output=o", *keys])
