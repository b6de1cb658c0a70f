"""What a prepared set holds: counts per class and split, durations, sizes, codecs, rejections, a contact sheet."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from jobs.core.cli import run_command
from jobs.core.errors import UserError
from pipeline.decode.config import DecodeError, FrameView
from pipeline.decode.decoder import IsolatedDecoder
from pipeline.prepare.versions import current_rejected, current_videos
from pipeline.storage.files import StorageError, absolute, exists, join, local_copy, read_bytes, write_bytes
from pipeline.storage.parquet import read_columns

CELL_PIXELS = 128
UNLABELLED = "(unlabelled)"


@dataclass(frozen=True)
class InspectConfig:
    """Configuration of the command."""

    data: str
    """A prepared set: the output of `prepare`."""
    version: int | None = None
    """Which version. Default: the newest."""
    picture: str | None = None
    """Where the contact sheet is written, PNG. Default: `contact_sheet.png` in the set."""
    pictures: int = 48
    """Clips on the contact sheet, spread over the classes."""
    seed: int = 0
    """Decides which clips are on the contact sheet."""

    def __post_init__(self) -> None:
        if self.pictures < 0:
            raise ValueError(f"pictures={self.pictures}: must be 0 (none) or more")


class Cell(NamedTuple):
    """One clip on the contact sheet."""

    caption: str
    picture: npt.NDArray[np.uint8] | None
    """``[CELL_PIXELS, CELL_PIXELS, 3]``, None where it could not be decoded."""


def run(config: InspectConfig) -> dict[str, Any]:
    """Print the tables, write the contact sheet, return the figures.

    Raises:
        UserError: ``data`` is no prepared set, or has no such version.
    """
    data = absolute(config.data)
    version = _version(data, config.version)
    videos = current_videos(data, version["version"])
    taken_out = pc.is_in(videos["uri"], pa.array(version["excluded"], pa.string()))
    stored = videos.filter(pc.and_not(pc.greater(videos["clips"], 0), taken_out))
    rejected = current_rejected(data, version)
    console = Console()
    console.print(_class_table(stored))
    if len(rejected):
        console.print(_rejected_table(rejected))
    picture = config.picture or join(data, "contact_sheet.png")
    if config.pictures:
        write_bytes(picture, contact_sheet(_cells(data, version["shards"], config)))
    return _figures(version, stored) | ({"contact_sheet": picture} if config.pictures else {})


def _version(data: str, number: int | None) -> dict[str, Any]:
    place = join(data, "dataset.json") if number is None else join(data, "versions", f"{number:04d}.json")
    if not exists(place):
        what = "is no prepared set" if number is None else f"has no version {number}"
        raise UserError(f"data={data}: {what}; give the output of `python -m jobs.prepare`")
    version: dict[str, Any] = json.loads(read_bytes(place))
    return version


def _figures(version: Mapping[str, Any], stored: pa.Table) -> dict[str, Any]:
    counts = version["counts"]
    sizes = pc.binary_join_element_wise(*(pc.cast(stored[side], pa.string()) for side in ("width", "height")), "x")
    return {
        "version": version["version"],
        "digest": version["digest"],
        "classes": len(version["classes"]),
        "clips": counts["clips"],
        "clips_by_split": counts["clips_by_split"],
        "hours": counts["seconds"] / 3600,
        "source_bytes": counts["source_bytes"],
        "stored_bytes": counts["stored_bytes"],
        "duration_seconds": _spread(stored["duration_seconds"]),
        "frames": _spread(stored["num_frames"]),
        "codecs": _most_common(stored["codec"].to_pylist()),
        "containers": _most_common(stored["container"].to_pylist()),
        "sizes": _most_common(sizes.to_pylist()),
        "fps": _most_common([f"{fps:.4g}" for fps in stored["fps"].to_pylist()]),
        "rejected": counts["rejected"],
    }


def _spread(values: pa.ChunkedArray) -> dict[str, float]:
    if len(values) == 0:
        return {}
    low, middle, high = np.quantile(values.to_numpy(), (0, 0.5, 1))
    return {"least": round(float(low), 3), "median": round(float(middle), 3), "most": round(float(high), 3)}


def _most_common(values: Sequence[str], shown: int = 8) -> dict[str, int]:
    counted = Counter(values)
    top = dict(counted.most_common(shown))
    others = sum(counted.values()) - sum(top.values())
    return top | ({"others": others} if others else {})


def _class_table(stored: pa.Table) -> Table:
    """Clips per class and split."""
    label = pc.fill_null(stored["label"], UNLABELLED)
    grouped = stored.set_column(stored.column_names.index("label"), "label", label).group_by(["label", "split"])
    clips: dict[str, dict[str, int]] = {}
    for row in grouped.aggregate([("clips", "sum")]).to_pylist():
        clips.setdefault(row["label"], {})[row["split"]] = row["clips_sum"]
    splits = sorted({split for of_class in clips.values() for split in of_class})
    table = Table(title="clips per class and split", title_justify="left")
    for column in ("class", *splits):
        table.add_column(column, justify="left" if column == "class" else "right")
    for name in sorted(clips, key=lambda name: (name == UNLABELLED, name)):
        table.add_row(name, *(str(clips[name].get(split, 0)) for split in splits))
    return table


def _rejected_table(rejected: pa.Table) -> Table:
    """Rejected videos by reason, with an example of each."""
    by_reason: dict[str, list[dict[str, str]]] = {}
    for row in rejected.to_pylist():
        by_reason.setdefault(row["reason"], []).append(row)
    table = Table("reason", "videos", "for example", "which says", title="rejected", title_justify="left")
    for reason, rows in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        table.add_row(reason, str(len(rows)), rows[0]["uri"].rpartition("/")[2], rows[0]["message"])
    return table


def _cells(data: str, shards: Sequence[Mapping[str, Any]], config: InspectConfig) -> Iterator[Cell]:
    """The middle frames of some clips, as many classes as fit."""
    rng = np.random.default_rng(config.seed)
    with IsolatedDecoder() as decoder:
        for clip in _chosen(data, shards, config.pictures, rng):
            caption = clip["label"] or clip["uri"].rpartition("/")[2]
            yield Cell(caption, _middle_frame(decoder, clip))


def _chosen(
    data: str, shards: Sequence[Mapping[str, Any]], wanted: int, rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """Clips from a few shards drawn at random, one of each class in turn."""
    drawn = [shards[index] for index in rng.permutation(len(shards))[:wanted]]
    by_label: dict[str, list[tuple[str, int]]] = {}
    for shard in drawn:
        for row, label in enumerate(_read(data, shard, ["label"])["label"].to_pylist()):
            by_label.setdefault(label or UNLABELLED, []).append((shard["file"], row))
    turns = [(turn, label, place) for label, places in by_label.items() for turn, place in enumerate(places)]
    places = [place for _, _, place in sorted(turns)[:wanted]]
    for shard in drawn:
        rows = [row for file, row in places if file == shard["file"]]
        if rows:
            yield from (
                _read(data, shard, ["label", "uri", "num_frames", "width", "height", "video"]).take(rows).to_pylist()
            )


def _read(data: str, shard: Mapping[str, Any], columns: list[str]) -> pa.Table:
    return read_columns(join(data, shard["file"]), columns)


def _middle_frame(decoder: IsolatedDecoder, clip: Mapping[str, Any]) -> npt.NDArray[np.uint8] | None:
    scale = CELL_PIXELS / max(clip["width"], clip["height"])
    size = max(1, round(clip["height"] * scale)), max(1, round(clip["width"] * scale))
    view = FrameView(np.array([(clip["num_frames"] - 1) // 2]), None, size)
    try:
        if clip["video"] is not None:
            frame = decoder.decode_bytes(clip["video"], [view])[0][0]
        else:
            with local_copy(clip["uri"]) as path:
                frame = decoder.decode(path, [view])[0][0]
    except DecodeError:
        return None
    except StorageError as error:
        if not error.missing:
            raise
        return None
    cell = np.full((CELL_PIXELS, CELL_PIXELS, 3), 255, np.uint8)
    top, left = (CELL_PIXELS - size[0]) // 2, (CELL_PIXELS - size[1]) // 2
    cell[top : top + size[0], left : left + size[1]] = frame
    return cell


def contact_sheet(cells: Iterator[Cell], columns: int = 8) -> bytes:
    """Captioned pictures in rows, as PNG."""
    shown = list(cells)
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(columns * 1.6, max(1, rows) * 1.8), dpi=100)
    for number, cell in enumerate(shown):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.set_title(cell.caption[:24], fontsize=7)
        axes.set_axis_off()
        if cell.picture is None:
            axes.text(0.5, 0.5, "not decodable", ha="center", va="center", fontsize=7)
        else:
            axes.imshow(cell.picture)
    figure.tight_layout(pad=0.4)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def main() -> None:
    """Entry point of ``python -m jobs.inspect``."""
    run_command("inspect", InspectConfig, run, description=__doc__ or "")


if __name__ == "__main__":
    main()
