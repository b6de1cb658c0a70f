"""Prices: the bill by hand, and files that are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.core.errors import UserError
from jobs.planning.figures import Figure
from jobs.planning.prices import read_prices

GIVEN = "currency: EUR\ngpu_hour: {h100: 2.5, l4: 0.7}\ncore_hour: 0.04\ngib_month: 0.02\n"
FIGURES = [Figure("GPU-hours", 100.0), Figure("core-hours", 1000.0), Figure("bytes kept: checkpoints", 10.0),
           Figure("bytes kept: prepared set", 90.0)]  # fmt: skip


def write(folder: Path, text: str) -> str:
    (folder / "prices.yaml").write_text(text)
    return str(folder / "prices.yaml")


def test_the_bill_by_hand(tmp_path: Path) -> None:
    prices = read_prices(write(tmp_path, GIVEN), "h100")
    bill = {line.name: (line.value, line.unit) for line in prices.bill(FIGURES)}
    assert bill == {"money: GPU-hours": (250.0, "EUR"), "money: bytes kept, a month": (2.0, "EUR")}
    without = [Figure("GPU-hours", 0.0), *FIGURES[1:]]
    assert next(prices.bill(without)) == Figure("money: core-hours", 40.0, "EUR", "the prices that were given")


def test_one_price_for_every_gpu(tmp_path: Path) -> None:
    prices = read_prices(write(tmp_path, "gpu_hour: 1"), "t4")
    assert [(line.value, line.unit) for line in prices.bill(FIGURES)] == [(100.0, "money")]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("- 1", "must be YAML with numbers"),
        ("gpu_hours: 1", "must be YAML with numbers"),
        ("gpu_hour: cheap", "gpu_hour|h100: must be YAML"),
        ("gpu_hour: {h1000: 2}", r"gpu_hour\.h1000: must be one of h100, "),
        ("gpu_hour: {l4: 2}", "gpu_hour: has no h100; add it"),
        ("core_hour: -1", "core_hour: must be YAML"),
        ("core_hour: .inf", "core_hour: must be YAML"),
        ("currency: [EUR]", "currency: must be YAML"),
        ("a: [", "give a YAML file of prices"),
    ],
)
def test_a_bad_file_is_one_message(text: str, rule: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=rule) as refused:
        read_prices(path, "h100")
    assert str(refused.value).startswith(f"prices={path}: ")


def test_a_missing_file_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prices=.*none\.yaml: .*give a YAML file of prices"):
        read_prices(str(tmp_path / "none.yaml"), "h100")
