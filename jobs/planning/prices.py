"""Prices, from a file of the user's own: none ships, because they change and differ by contract."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from jobs.core.errors import UserError
from jobs.core.yaml_text import parse_yaml
from jobs.planning.cluster import GPUS
from jobs.planning.figures import Figure
from pipeline.storage.errors import first_line
from pipeline.storage.files import StorageError, absolute, read_text

RULE = (
    "must be YAML with numbers of 0 or more: gpu_hour (one, or one for each name of a GPU), core_hour, gib_month; and "
    "currency, a word"
)
MOST = 1e9
NUMBERS = ("core_hour", "gib_month")


@dataclass(frozen=True)
class Prices:
    """What an hour or a month of something costs; what is None is left out of the bill."""

    currency: str
    gpu_hour: float | None
    """Of a GPU with its share of the host."""
    core_hour: float | None
    """Of a core where no GPU is rented."""
    gib_month: float | None

    def bill(self, figures: Sequence[Figure]) -> Iterator[Figure]:
        """Money for the lines of a plan: GPUs, or cores where the command needs no GPU; and storage."""
        values = {line.name: line.value for line in figures if not isinstance(line.value, str)}
        names = [("GPU-hours", self.gpu_hour)] if values.get("GPU-hours") else [("core-hours", self.core_hour)]
        for name, price in names:
            if price is not None:
                yield Figure(f"money: {name}", values[name] * price, self.currency, "the prices that were given")
        kept = sum(value for name, value in values.items() if name.startswith("bytes kept"))
        if self.gib_month is not None:
            yield Figure("money: bytes kept, a month", kept * self.gib_month, self.currency,
                         "the prices that were given")  # fmt: skip


def read_prices(path: str, gpu: str) -> Prices:
    """The prices of a file, for one kind of GPU.

    Raises:
        UserError: it is missing, or follows another form.
    """
    try:
        content = parse_yaml(read_text(absolute(path)))
    except (StorageError, yaml.YAMLError) as error:
        raise UserError(f"prices={path}: {first_line(error)}; give a YAML file of prices") from error
    if not isinstance(content, dict) or content.keys() - {"currency", "gpu_hour", *NUMBERS}:
        raise UserError(f"prices={path}: {RULE}")
    hour = content.get("gpu_hour")
    by_name = hour if isinstance(hour, dict) else {gpu: hour}
    if unknown := [str(name) for name in by_name if name not in GPUS]:
        raise UserError(f"prices={path}: gpu_hour.{unknown[0]}: must be one of {', '.join(GPUS)}")
    if by_name and gpu not in by_name:
        raise UserError(f"prices={path}: gpu_hour: has no {gpu}; add it, or plan for {', '.join(by_name)}")
    currency = content.get("currency", "money")
    if not isinstance(currency, str):
        raise UserError(f"prices={path}: currency: {RULE}")
    return Prices(currency, _number(path, by_name, gpu), *(_number(path, content, key) for key in NUMBERS))


def _number(path: str, content: Mapping[str, Any], key: str) -> float | None:
    value = content.get(key)
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value < MOST:
        raise UserError(f"prices={path}: {key}: {RULE}")
    return float(value)
