"""What a prepared set holds, in figures and tables: clips per class and split, durations, formats, rejections."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.table import Table

from jobs.core.text import plain

UNLABELLED = "(unlabelled)"


def set_figures(version: Mapping[str, Any], stored: pa.Table) -> dict[str, Any]:
    """The figures of one version.

    Args:
        version: its record in ``versions/``.
        stored: the records of the videos that it holds.
    """
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
        "pixel_aspects": _most_common([f"{aspect or 1:.4g}" for aspect in stored["pixel_aspect"].to_pylist()]),
        "trimmed_frames": pc.sum(stored["trimmed_frames"]).as_py() or 0,
        "damaged_frames": pc.sum(stored["damaged_frames"]).as_py() or 0,
        "damaged_videos": pc.sum(pc.greater(pc.fill_null(stored["damaged_frames"], 0), 0)).as_py() or 0,
        "fps": _most_common([f"{fps:.4g}" for fps in stored["fps"].to_pylist()]),
        "rejected": counts["rejected"],
    }


def class_table(stored: pa.Table) -> Table:
    """Clips per class and split; those without a label last."""
    label = pc.fill_null(stored["label"], UNLABELLED)
    grouped = stored.set_column(stored.column_names.index("label"), "label", label).group_by(["label", "split"])
    clips = {
        (row["label"], row["split"]): row["clips_sum"] for row in grouped.aggregate([("clips", "sum")]).to_pylist()
    }
    splits = sorted({split for _, split in clips})
    table = Table("class", title="clips per class and split", title_justify="left")
    for split in splits:
        table.add_column(plain(split), justify="right")
    for name in sorted({name for name, _ in clips}, key=lambda name: (name == UNLABELLED, name)):
        table.add_row(plain(name), *(str(clips.get((name, split), 0)) for split in splits))
    return table


def rejected_table(rejected: pa.Table) -> Table:
    """Rejected videos by reason, with an example of each."""
    table = Table("reason", "videos", "for example", "message", title="rejected", title_justify="left")
    reasons = Counter(rejected["reason"].to_pylist())
    for reason, videos in reasons.most_common():
        example = rejected.filter(pc.equal(rejected["reason"], reason)).slice(0, 1).to_pylist()[0]
        table.add_row(*map(plain, (reason, videos, example["uri"].rpartition("/")[2], example["message"])))
    return table


def _spread(values: pa.ChunkedArray) -> dict[str, float]:
    if len(values) == 0:
        return {}
    low, middle, high = np.quantile(values.to_numpy(), (0, 0.5, 1))
    return {"least": round(float(low), 3), "median": round(float(middle), 3), "most": round(float(high), 3)}


def _most_common(values: Sequence[str], shown: int = 8) -> dict[str, int]:
    counted = Counter(values)
    top = dict(counted.most_common(shown))
    others = counted.total() - sum(top.values())
    return top | ({"others": others} if others else {})
