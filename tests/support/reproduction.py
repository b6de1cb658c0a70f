"""Writes docs/reproduction.md: `python -m tests.support.reproduction`. A test compares the file with what this makes.

GPU hours are views times the multiply-adds that `complexity_of` counts for each row's own configuration: estimates.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hiera_video.analysis.flops import complexity_of
from jobs.core.config import load_config
from jobs.evaluate import EvaluateConfig
from jobs.sweeping.plan import plan_children, read_arguments
from jobs.training.finetune_step import FinetuneConfig
from jobs.training.pretrain_step import PretrainConfig
from jobs.weights.model_config import architecture

PAGE = Path(__file__).parents[2] / "docs" / "reproduction.md"
PEAK_FLOPS, UTILISATION = 312e12, 0.35  # NVIDIA A100, bfloat16
# Clips in the training and validation sets. K400 and SSv2: the copies that the papers used; K600 and K700 about.
CLIPS = {"k400": (240_258, 19_818), "k600": (390_000, 29_800), "k700": (540_000, 34_700), "ssv2": (168_913, 24_777)}
CLASSES = {"k400": 400, "k600": 600, "k700": 700, "ssv2": 174}
NO_DATA = "not run: no data"
_COUNTED = ", ".join(f"{name.upper()} {train:,} + {val:,}" for name, (train, val) in CLIPS.items())


@dataclass(frozen=True)
class Row:
    """A figure of the paper and the commands that reproduce it."""

    source: str
    what: str
    expected: str
    pretrain: tuple[str, ...]
    """Recipe and keys; keys that list values make it a sweep; none: published weights."""
    finetune: tuple[str, ...]
    evaluate: str
    pretrained_on: str
    scored_on: str
    status: str = NO_DATA


def main_rows() -> Iterator[Row]:
    """The comparison tables."""
    tables = [
        ("K400", "k400", {"base": "84.0", "base_plus": "85.0", "large": "87.3", "huge": "87.8"}),
        ("K600", "k600", {"large": "88.3", "huge": "88.8"}),
        ("K700", "k700", {"large": "80.3", "huge": "81.1"}),
    ]
    for source, name, figures in tables:
        for size, expected in figures.items():
            recipe = (f"{name}_{size}",)
            yield Row(source, f"{size}, 5×3 views", expected, recipe, recipe, name, name, name)
    for views, recipe, chained, alone in (("1×3", "ssv2", "74.7", "74.9"), ("2×3", "ssv2_two_clips", "75.0", "75.1")):
        chain = ("k400_to_ssv2_large",)
        what = f"large, {views} views"
        yield Row("SSv2, Tab. 6", f"{what}, K400 → SSv2", chained, ("k400_large",), chain, recipe, "k400", "ssv2")
        yield Row("SSv2, Tab. 6", what, alone, ("ssv2_large",), ("ssv2_large",), recipe, "ssv2", "ssv2")
    longer = ("ssv2_large_32frames",)
    yield Row("SSv2, Tab. 6", "large, 32 frames, 1×3", "76.5", ("ssv2_large",), longer, "ssv2", "ssv2", "ssv2")


def ablations() -> Iterator[Row]:
    """Table 3: Large on K400, 800 epochs of pretraining."""
    swept = {
        "multi-scale decoder off / on": ("model_overrides.multi_scale_fusion=[false,true]", "83.8 / 85.5"),
        "mask ratio 0.75 / 0.9 / 0.95": ("mask_ratio=[0.75,0.9,0.95]", "84.9 / 85.5 / 84.4"),
        "pixel / HOG target": ("model_overrides.target=[normalized_pixels,hog]", "85.5 / 86.1"),
        "drop path 0 / 0.1 / 0.2 / 0.3": (
            "model_overrides.drop_path_rate=[0,0.1,0.2,0.3]",
            "84.5 / 85.4 / 85.5 / 85.2",
        ),
        "decoder depth 4 / 8 / 12": ("model_overrides.decoder_depth=[4,8,12]", "84.8 / 85.5 / 85.4"),
    }
    for what, (key, expected) in swept.items():
        pretraining = ("k400_large", "epochs=800", key)
        yield Row("K400, Tab. 3", what, expected, pretraining, ("k400_large",), "k400", "k400", "k400")
    epochs = ("k400_large", "epochs=[400,800,1600,3200]")
    expected = "84.0 / 85.5 / 86.4 / 87.3"
    yield Row("K400, Tab. 3", "epochs 400 … 3200", expected, epochs, ("k400_large",), "k400", "k400", "k400")


def commands(row: Row) -> list[str]:
    """The commands of a row, as typed; the later steps of a sweep take every child by its folder."""
    folder = (
        f"$OUT/{'-'.join([*row.finetune, row.pretrained_on, *(key.partition('=')[0] for key in row.pretrain[1:])])}"
    )
    swept = any("[" in key for key in row.pretrain)
    data, pretraining = f"data=${row.scored_on.upper()}", f"{folder}/pretrain"
    first = f"python -m jobs.{'sweep ' if swept else ''}pretrain {' '.join(row.pretrain)}"
    children = [child.name for child in _pretrainings(row)] if swept else []
    inits = f"[{','.join(f'{pretraining}/{child}' for child in children)}]" if swept else pretraining
    tuning = f"python -m jobs.{'sweep ' if swept else ''}finetune {' '.join(row.finetune)}"
    scored = f"{folder}/finetune" + ("/CHILD" if swept else "")
    return [
        f"{first} data=${row.pretrained_on.upper()} output={pretraining}",
        f"{tuning} {data} init={inits} output={folder}/finetune",
        f"python -m jobs.evaluate {row.evaluate} {data} init={scored} output={folder}/evaluate",
    ]


def gpu_hours(row: Row) -> tuple[float, float, float]:
    """Pretraining, fine-tuning and scoring, of all runs of a row."""
    train_clips, _ = CLIPS[row.pretrained_on]
    tuned_clips, scored_clips = CLIPS[row.scored_on]
    children = _pretrainings(row)
    pretraining = sum(
        _hours(3 * (child.config.epochs or 0) * train_clips, child.config.architecture) for child in children
    )
    tuning = load_config(FinetuneConfig, "finetune", [*row.finetune, "data=d", "init=i", "output=o"])
    overrides = {**tuning.model_overrides, "num_classes": CLASSES[row.scored_on]}
    classifier = architecture(tuning.model, overrides)
    views = load_config(EvaluateConfig, "evaluate", [row.evaluate, "data=d", "init=i", "output=o"]).views.views
    return (
        pretraining,
        len(children) * _hours(3 * (tuning.epochs or 0) * tuned_clips, classifier),
        len(children) * _hours(scored_clips * views, classifier),
    )


def _pretrainings(row: Row) -> list[Any]:
    words = ["pretrain", *row.pretrain, "data=d", "output=/o"]
    if any("[" in key for key in row.pretrain):
        return plan_children(read_arguments(words))
    return [_Single(load_config(PretrainConfig, "pretrain", words[1:]))]


@dataclass(frozen=True)
class _Single:
    config: PretrainConfig


def _hours(forward_passes: float, config: Any) -> float:
    """A backward pass counts as two forward passes."""
    return forward_passes * 2 * multiply_adds(replace(config, drop_path_rate=0.0)) / (PEAK_FLOPS * UTILISATION) / 3600


@functools.cache
def multiply_adds(config: Any) -> int:
    """Of one forward pass; seconds for the largest models."""
    return complexity_of(config).multiply_adds


def page() -> str:
    """The page."""
    return "\n".join([*_INTRODUCTION.splitlines(), "", *_table(list(main_rows())), "", *_ABLATIONS.splitlines(), "",
                      *_table(list(ablations())), "", *_REST.splitlines(), ""])  # fmt: skip


def _table(rows: list[Row]) -> Iterator[str]:
    yield "| paper | what | expected top-1 | GPU hours: pretrain + fine-tune + score | status | commands |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        hours = " + ".join(f"{hour:,.0f}" if hour >= 1 else f"{hour:.1f}" for hour in gpu_hours(row))
        typed = "<br>".join(f"`{command}`" for command in commands(row))
        yield f"| {row.source} | {row.what} | {row.expected} | {hours} | {row.status} | {typed} |"


_INTRODUCTION = f"""# Reproduction

The video tables of the Hiera paper (arXiv 2306.00989), the commands for each row, and what was done. Generated
by `python -m tests.support.reproduction`; a test compares it with the recipes.

**No row was run: neither the data sets nor GPUs were available.** What was checked instead:

- The models equal the official package with the same weights to 1e-5, gradients to 1e-4
  (`tests/hiera_video/*/test_*_parity.py`).
- `evaluate k400` with weights in the official format equals a plain loop over the official package on the same real
  clips: same top-1, scores within 1e-4 (`tests/jobs/test_evaluate_parity.py`). With the published weights the
  cheapest check is one command, expected 84.0 (Base), HOURS GPU hours:
  `python -m jobs.evaluate k400 init=hiera_base_16x224.pth data=$K400 output=$OUT/official-base`
- Every recipe's value has its source beside it (`jobs/recipes/`), and tests compare them with the paper's tables.

GPU hours are estimates, not measured: views × multiply-adds of the row's own configuration (`analysis.flops`)
× 2, × 3 in training, over {PEAK_FLOPS / 1e12:.0f} TFLOP/s (one NVIDIA A100, bfloat16) at an assumed utilisation of
{UTILISATION:.0%}. Decoding is not included; `--dry-run` prints how many views a second it must deliver. Clips counted:
{_COUNTED}.
`$K400`, `$SSV2`, ... are prepared sets, `$OUT` is a folder or prefix. Rows that share their
pretraining need it once."""

_ABLATIONS = """## Ablations

Large on Kinetics-400, 800 epochs of pretraining unless the row says otherwise. `CHILD` is the folder of each child."""

_REST = """## Not reproducible here

| paper | what | expected | why |
|---|---|---|---|
| AVA v2.2 | detection of actions, large / huge, K400-pretrained | 39.8 / 42.5 mAP | no detection head here |

Intended differences from the authors' training: see `CHANGELOG.md` (position of RandAugment, mixing partners)."""


def text() -> str:
    """The page with its one computed figure."""
    config = architecture("hiera_base_16x224", {})
    return page().replace("HOURS", f"{_hours(CLIPS['k400'][1] * 15, config):.1f}")


if __name__ == "__main__":
    PAGE.write_text(text())
