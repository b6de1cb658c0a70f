"""Maintain the tables of a tagging output: larger files, no files of old snapshots, the layout of this release."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.core.cli import Command
from jobs.core.errors import UserError
from jobs.core.signals import keeping_finished_work
from jobs.tagging.job import settled_tables
from jobs.tagging.job_log import working_on
from pipeline.storage.files import absolute
from pipeline.tagging.old_layout import converted, holds_old_layout, old_settings, remove_old_layout
from pipeline.tagging.tables import TagTables, create_tables, open_tables

DESCRIPTION = (
    "Maintain the tables of a tagging output: join small files into larger ones, delete files that no snapshot has "
    "used for a week, convert the layout of older releases."
)
KEPT = "the tables are whole; the same command does the rest"


@dataclass(frozen=True, kw_only=True)
class MaintainConfig:
    """Which output, and how."""

    output: str
    """Output of `tag`."""
    target_mib: int = 128
    """Size of a file of a table, in MiB; smaller ones are joined."""
    keep_hours: float = 168.0
    """How long files stay that no snapshot uses any more. Older snapshots can then no longer be read."""
    convert: bool = False
    """Convert an output of a release without tables, where it is. Videos that were not committed are tagged again."""

    def __post_init__(self) -> None:
        if self.target_mib < 1:
            raise ValueError(f"target_mib={self.target_mib}: must be at least 1; 128 is a good value")
        if self.keep_hours < 0:
            raise ValueError(f"keep_hours={self.keep_hours}: must not be negative; 168 keeps a week")


def run(config: MaintainConfig) -> Mapping[str, Any]:
    """Convert if asked, then compact and vacuum both tables; nobody tags meanwhile.

    Raises:
        UserError: the output holds no tags, or another job works on it.
    """
    output = absolute(config.output)
    refuse_what_is_no_table(output, config.convert)
    with keeping_finished_work(KEPT), working_on(output) as log:
        if config.convert:
            convert(output)
        tables = settled_tables(log, output)
        if tables is None:  # the old layout had plans and no commit
            return {"rows": 0}
        before = file_counts(tables)
        tables.compact(config.target_mib * 2**20)
        deleted = sum(table.vacuum(config.keep_hours) for table in (tables.tags, tables.videos))
    return {
        "rows": tables.tags.num_rows(),
        "videos": tables.videos.num_rows(),
        "files_before": before,
        "files": file_counts(tables),
        "files_deleted": deleted,
        "mib": sum(tables.tags.sizes() + tables.videos.sizes()) / 2**20,
    }


def refuse_what_is_no_table(output: str, convert: bool) -> None:
    """`UserError` for an output of an older release that is not to be converted, and the reverse."""
    if holds_old_layout(output) and not convert:
        raise UserError(f"output={output}: holds tags in the layout of an older release; add convert=true")
    if convert and not holds_old_layout(output):
        raise UserError(f"output={output}: holds nothing in the layout of an older release; leave out convert=true")
    if not convert and open_tables(output) is None:
        raise UserError(f"output={output}: holds no tags; give an output of tag")


def convert(output: str) -> None:
    """Commit the rows of an old snapshot to new tables, all in one transaction, then remove the old layout."""
    settings = old_settings(output)
    if settings is not None:
        tables = create_tables(output, settings)
        if tables.tags.transaction == 0:  # else an earlier conversion was cut off after its commit
            tables.commit(converted(output), {"converted": "from an older release"})
    remove_old_layout(output)


def file_counts(tables: TagTables) -> int:
    """Files of both tables."""
    return len(tables.tags.files()) + len(tables.videos.files())


main = Command("maintain", MaintainConfig, run, description=DESCRIPTION, keep_report=False)


if __name__ == "__main__":
    main()
