"""Print what a prepared set holds: counts per class and split, durations, formats, rejections; draw some clips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.core.cli import Command, print_tables
from jobs.core.errors import UserError
from jobs.reports.contact_sheet import sheet_cells
from jobs.reports.plots import contact_sheet
from jobs.reports.prepared_set import class_table, rejected_table, set_figures
from pipeline.prepare.versions import current_videos, read_rejected
from pipeline.shards.reader import SET_RECORD, media_of
from pipeline.storage.files import absolute, exists, join, read_json, write_bytes

VERSION_ENTRIES = {**SET_RECORD, "rejected": list, "excluded": list}


@dataclass(frozen=True)
class InspectConfig:
    """Configuration of the command."""

    data: str
    """A prepared set: the output of `prepare`."""
    version: int | None = None
    """Which version. Default: the newest."""
    picture: str | None = None
    """Path or URI of the contact sheet, PNG. Default: `contact_sheet.png` in the set."""
    pictures: int = 48
    """Clips on the contact sheet, spread over the classes."""
    seed: int = 0
    """Decides which clips are on the contact sheet."""

    def __post_init__(self) -> None:
        if self.pictures < 0:
            raise ValueError(f"pictures={self.pictures}: must be 0 (none) or more; use 48")


def run(config: InspectConfig) -> dict[str, Any]:
    """Print the tables, return the figures.

    Raises:
        UserError: ``data`` is no prepared set, or has no such version.
    """
    data = absolute(config.data)
    version = read_version(data, config.version)
    stored = stored_videos(data, version)
    rejected = read_rejected(data, version["rejected"])
    print_tables(class_table(stored), *([rejected_table(rejected)] if len(rejected) else []))
    return set_figures(version, stored)


def draw(config: InspectConfig, figures: Mapping[str, Any]) -> dict[str, str]:
    """Write the contact sheet of the version that `run` has printed; where it lies."""
    if config.pictures == 0:
        return {}
    data = absolute(config.data)
    version = read_version(data, figures["version"])
    picture = config.picture or join(data, "contact_sheet.png")
    cells = sheet_cells(data, version["shards"], config.pictures, config.seed, media_of(version))
    write_bytes(picture, contact_sheet(list(cells)))
    return {"contact_sheet": picture}


def read_version(data: str, number: int | None) -> dict[str, Any]:
    """The record of a version; the newest by default.

    Raises:
        UserError: see `run`.
    """
    path = join(data, "dataset.json") if number is None else join(data, "versions", f"{number:04d}.json")
    if not exists(path):
        what = "is no prepared set" if number is None else f"has no version {number}"
        raise UserError(f"data={data}: {what}; give the output of `python -m jobs.prepare`")
    return read_json(path, VERSION_ENTRIES)


def stored_videos(data: str, version: dict[str, Any]) -> pa.Table:
    """The records of the videos that a version holds: neither rejected nor excluded."""
    videos = current_videos(data, version["version"])
    excluded = pc.is_in(videos["uri"], pa.array(version["excluded"], pa.string()))
    return videos.filter(pc.and_not(pc.greater(videos["clips"], 0), excluded))


main = Command("inspect", InspectConfig, run, description=__doc__ or "", draw=draw)


if __name__ == "__main__":
    main()
