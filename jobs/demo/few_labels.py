"""Few labels: of what the demo makes, most training videos lose their label; the held-out ones keep theirs."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path

HELD_OUT = 5  # every fifth of a class, where the list names no split
COLUMNS = ("path", "label", "split")


def keep_few_labels(annotations: Path, per_class: int) -> None:
    """Write the list (path, label, perhaps split) anew: a split for every row, ``per_class`` labels in training.

    The same call again changes nothing.
    """
    with annotations.open(newline="") as file:
        rows = list(csv.DictReader(file))
    seen, kept = Counter[str](), Counter[str]()
    written = io.StringIO()
    lines = csv.writer(written, lineterminator="\n")
    lines.writerow(COLUMNS)
    for row in rows:
        label = row["label"]
        split = row.get("split") or ("val" if seen[label] % HELD_OUT == 0 else "train")
        seen[label] += 1
        kept[label] += split == "train"
        lines.writerow((row["path"], "" if split == "train" and kept[label] > per_class else label, split))
    if (content := written.getvalue()) != annotations.read_text():
        annotations.write_text(content)
