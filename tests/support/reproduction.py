"""Writes docs/reproduction.md: `python -m tests.support.reproduction`. A test compares the file with what this makes.

GPU hours are views times the multiply-adds that `complexity_of` counts for each row's own configuration: estimates.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hiera_video.analysis.flops import complexity_of
from jobs.core.config import load_config
from jobs.evaluate import EvaluateConfig
from jobs.sweep.plan import plan_children, read_arguments
from jobs.training.steps.finetune import FinetuneConfig
from jobs.training.steps.pretrain import PretrainConfig
from jobs.weights.model_config import overridden_config

PAGE = Path(__file__).parents[2] / "docs" / "reproduction.md"
PEAK_FLOPS, UTILISATION = 312e12, 0.35  # NVIDIA A100, bfloat16
# Clips in the training and validation sets. K400 and SSv2: the copies that the papers used; K600 and K700 about.
VIDEOS = {"k400": (240_258, 19_818), "k600": (390_000, 29_800), "k700": (540_000, 34_700), "ssv2": (168_913, 24_777)}
# As the sets' own pages count them; iNaturalist 2017 and 2019: visipedia/inat_comp.
IMAGES = {
    "in1k": (1_281_167, 50_000), "inat17": (579_184, 95_986), "inat18": (437_513, 24_426), "inat19": (265_213, 3_030),
    "places365": (1_803_460, 36_500),
}  # fmt: skip
CLIPS = {**VIDEOS, **IMAGES}
CLASSES = {"k400": 400, "k600": 600, "k700": 700, "ssv2": 174, "in1k": 1000, "inat17": 5089, "inat18": 8142,
           "inat19": 1010, "places365": 365}  # fmt: skip
NO_DATA = "not run: no data"


def _counted(sets: dict[str, tuple[int, int]]) -> str:
    return ", ".join(f"{name.upper()} {train:,} + {val:,}" for name, (train, val) in sets.items())


@dataclass(frozen=True)
class Row:
    """A figure of the paper and the commands that reproduce it."""

    source: str
    what: str
    expected: str
    pretrain: tuple[str, ...]
    """Recipe and keys; keys that list values make it a sweep; none: trained from scratch."""
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


def image_rows() -> Iterator[Row]:
    """Tables 8 and 9, and the end of Figure 8 that is Hiera."""
    figures = {"tiny": "82.8", "small": "83.8", "base": "84.5", "base_plus": "85.2", "large": "86.1", "huge": "86.9"}
    for size, expected in figures.items():
        recipe = (f"in1k_{size}",)
        yield Row("ImageNet-1K, Tab. 8", f"{size}, 1×1 view", expected, recipe, recipe, "in1k", "in1k", "in1k")
    transferred = {
        "inat17": ("iNaturalist 2017", "73.3 / 74.7 / 76.8 / 79.6 / 83.8"),
        "inat18": ("iNaturalist 2018", "77.9 / 79.9 / 80.9 / 83.5 / 87.3"),
        "inat19": ("iNaturalist 2019", "83.0 / 83.1 / 84.3 / 85.7 / 88.5"),
        "places365": ("Places365", "58.9 / 59.2 / 59.6 / 60.0 / 60.6"),
    }
    for name, (source, expectations) in transferred.items():
        for size, expected in zip(
            ("base", "base_plus", "large", "huge", "huge_448"), expectations.split(" / "), strict=True
        ):
            pretraining = (f"in1k_{size.removesuffix('_448')}",)
            yield Row(
                f"{source}, Tab. 9",
                f"{size}, 1×1 view",
                expected,
                pretraining,
                (f"{name}_{size}",),
                "in1k",
                "in1k",
                name,
            )
    unprinted = "not printed (MViTv2-B: 84.4)"
    yield Row(
        "ImageNet-1K, Fig. 8",
        "base from scratch, 1×1 view",
        unprinted,
        (),
        ("in1k_scratch_base",),
        "in1k",
        "in1k",
        "in1k",
    )
    yield Row(
        "K400, Fig. 8",
        "base from scratch, 5×3 views",
        "not printed",
        (),
        ("k400_scratch_base",),
        "k400",
        "k400",
        "k400",
    )


def image_ablations() -> Iterator[Row]:
    """Table 3, column of images: Large on ImageNet-1K, 400 epochs of pretraining."""
    swept = {
        "multi-scale decoder off / on": ("model_overrides.multi_scale_fusion=[false,true]", "85.0 / 85.6"),
        "mask ratio 0.5 / 0.6 / 0.7": ("mask_ratio=[0.5,0.6,0.7]", "85.5 / 85.6 / 85.3"),
        "pixel / HOG target": ("model_overrides.target=[normalized_pixels,hog]", "85.6 / 85.7"),
        "drop path 0 / 0.1 / 0.2 / 0.3": (
            "model_overrides.drop_path_rate=[0,0.1,0.2,0.3]",
            "85.2 / 85.6 / 85.6 / 85.5",
        ),
        "decoder depth 4 / 8 / 12": ("model_overrides.decoder_depth=[4,8,12]", "85.5 / 85.6 / 85.5"),
    }
    # Table 14b: layer decay and drop path of fine-tuning after 400 epochs.
    tuning = ("in1k_large", "optimizer.layer_decay=0.9", "model_overrides.drop_path_rate=0.2")
    for what, (key, expected) in swept.items():
        yield Row(
            "ImageNet-1K, Tab. 3", what, expected, ("in1k_large", "epochs=400", key), tuning, "in1k", "in1k", "in1k"
        )
    epochs, expected = ("in1k_large", "epochs=[400,800,1600,3200]"), "85.6 / 85.8 / 86.1 / 86.1"
    yield Row("ImageNet-1K, Tab. 3", "epochs 400 … 3200", expected, epochs, tuning, "in1k", "in1k", "in1k")


def commands(row: Row) -> list[str]:
    """The commands of a row, as typed; the later steps of a sweep take every child by its folder."""
    words = (row.finetune[0], row.pretrained_on, *row.pretrain[1:], *row.finetune[1:])
    folder = f"$OUT/{'-'.join(word.partition('=')[0] for word in words)}"
    swept = any("[" in key for key in row.pretrain)
    data, pretraining = f"data=${row.scored_on.upper()}", f"{folder}/pretrain"
    first = f"python -m jobs.{'sweep ' if swept else ''}pretrain {' '.join(row.pretrain)}"
    children = [child.name for child in _pretrainings(row)] if swept else []
    inits = f"[{','.join(f'{pretraining}/{child}' for child in children)}]" if swept else pretraining
    tuning = f"python -m jobs.{'sweep ' if swept else ''}finetune {' '.join(row.finetune)}"
    scored = f"{folder}/finetune" + ("/CHILD" if swept else "")
    scratch = not row.pretrain
    return [
        *([] if scratch else [f"{first} data=${row.pretrained_on.upper()} output={pretraining}"]),
        f"{tuning} {data}{'' if scratch else f' init={inits}'} output={folder}/finetune",
        f"python -m jobs.evaluate {row.evaluate} {data} init={scored} output={folder}/evaluate",
    ]


def steps(row: Row) -> tuple[list[int], int]:
    """Optimizer steps of each pretraining, and of a fine-tuning."""
    pretrainings = [_steps(child.config, CLIPS[row.pretrained_on][0]) for child in _pretrainings(row)]
    return pretrainings or [0], _steps(_fine_tuning(row), CLIPS[row.scored_on][0])


def _steps(config: PretrainConfig | FinetuneConfig, clips: int) -> int:
    return math.ceil((config.epochs or 0) * clips / config.global_batch)


@functools.cache
def _fine_tuning(row: Row) -> FinetuneConfig:
    return load_config(FinetuneConfig, "finetune", [*row.finetune, "data=d", "init=i", "output=o"])


def gpu_hours(row: Row) -> tuple[float, float, float]:
    """Pretraining, fine-tuning and scoring, of all runs of a row."""
    train_clips, _ = CLIPS[row.pretrained_on]
    tuned_clips, scored_clips = CLIPS[row.scored_on]
    children = _pretrainings(row)
    tunings = max(1, len(children))
    pretraining = sum(
        _hours(3 * (child.config.epochs or 0) * train_clips, child.config.model_config) for child in children
    )
    tuning = _fine_tuning(row)
    overrides = {**tuning.model_overrides, "num_classes": CLASSES[row.scored_on]}
    classifier = overridden_config(tuning.model, overrides)
    views = load_config(EvaluateConfig, "evaluate", [row.evaluate, "data=d", "init=i", "output=o"]).views.views
    return (
        pretraining,
        tunings * _hours(3 * (tuning.epochs or 0) * tuned_clips, classifier),
        tunings * _hours(scored_clips * views, classifier),
    )


@functools.cache
def _pretrainings(row: Row) -> list[Any]:
    if not row.pretrain:
        return []
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
                      *_table(list(ablations())), "", *_IMAGES.splitlines(), "", *_table(list(image_rows())), "",
                      *_IMAGE_ABLATIONS.splitlines(), "", *_table(list(image_ablations())), "", *_REST.splitlines(),
                      ""])  # fmt: skip


def _table(rows: list[Row]) -> Iterator[str]:
    yield (
        "| paper | what | expected top-1 | steps: pretrain + fine-tune | GPU hours: pretrain + fine-tune + score "
        "| status | commands |"
    )
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        hours = " + ".join(f"{hour:,.0f}" if hour >= 1 else f"{hour:.1g}" for hour in gpu_hours(row))
        pretraining, tuning = steps(row)
        lengths = f"{' / '.join(f'{length:,}' for length in dict.fromkeys(pretraining))} + {tuning:,}"
        typed = "<br>".join(f"`{command}`" for command in commands(row))
        yield f"| {row.source} | {row.what} | {row.expected} | {lengths} | {hours} | {row.status} | {typed} |"


_INTRODUCTION = f"""# Reproduction

The tables of the Hiera paper (arXiv 2306.00989), the commands for each row, and what was done. Generated
by `python -m tests.support.reproduction`; a test compares it with the recipes.

**No row was run: neither the data sets nor GPUs were available.** What was checked instead:

- The models equal the official package with the same weights to 1e-5, gradients to 1e-4
  (`tests/hiera_video/models/`, `tests/hiera_video/weights/test_key_mapping.py`).
- `evaluate k400` with weights in the official format equals a plain loop over the official package on the same real
  clips: same top-1, scores within 1e-4 (`tests/jobs/test_evaluate.py`). With the published weights the
  cheapest check is one command, expected 84.0 (Base), HOURS GPU hours:
  `python -m jobs.evaluate k400 init=hiera_base_16x224.pth data=$K400 output=$OUT/official-base`
- Every recipe's value has its source beside it (`jobs/recipes/`), and tests compare them with the paper's tables.

GPU hours are estimates, not measured: views × multiply-adds of the row's own configuration (`analysis.flops`)
× 2, × 3 in training, over {PEAK_FLOPS / 1e12:.0f} TFLOP/s (one NVIDIA A100, bfloat16) at an assumed utilisation of
{UTILISATION:.0%}. Decoding is not included; `--dry-run` prints how many views a second it must deliver. Clips counted:
{_counted(VIDEOS)}.
Epochs are effective: views over clips, so that the hours do not depend on the batch. Batch sizes of the paper are read
as videos, each with `view.repeats` views: 512 × 4 in pretraining, 256 × 2 in fine-tuning. Not confirmed: no public
Hiera configuration says so, but SlowFast (`config/defaults.py` on `AUG.NUM_SAMPLE`; 1e-4 for 64 videos of 4 views in
`k400_VIT_L_16x4_MAE_PT.yaml`), MAE-ST and VideoMAE V2 count so. Read as views, `optimizer.batch_counts=views` with
`global_batch=512` (256) takes the same rates four times (twice) as many steps.
`$K400`, `$SSV2`, ... are prepared sets, `$OUT` is a folder or prefix. Rows that share their
pretraining need it once."""

_ABLATIONS = """## Ablations

Large on Kinetics-400, 800 epochs of pretraining unless the row says otherwise. `CHILD` is the folder of each child."""

_IMAGES = f"""## Images

One view: short side 256, centre 224; above 224 px straight to the size. Images counted:
{_counted(IMAGES)}.
Rates, epochs, layer decay, drop path and dropout of Table 9 were searched for each set (§A.2) and are not printed: the
recipes have a value within each range; the sweep over the ranges stands in `jobs/recipes/finetune/transfer.yaml`.
Logits of weights in the official and in Hugging Face's format equal those of the official package and of `transformers`
on real photographs (`tests/jobs/scoring/test_classifier.py`), with random weights: there were no published ones here.

Beside Table 8, as the paper has them: ViT-B/L/H supervised 82.3 / 82.6 / 83.1, MAE 83.6 / 85.9 / 86.9, MaskFeat (B, L)
84.0 / 85.7; MViTv2-T/S/B/L 82.3 / 83.6 / 84.4 / 85.3; SimMIM (Swin-B/L) 83.8 / 85.4; MCMAE-B/L 85.0 / 86.2; BEiT-B/L
83.2 / 85.2. Beside Table 9, ViT-B, L, H and H at 448 with MAE: 70.5 / 75.7 / 79.3 / 83.4 (iNaturalist 2017),
75.4 / 80.1 / 83.0 / 86.8 (2018), 80.5 / 83.4 / 85.7 / 88.3 (2019), 57.9 / 59.4 / 59.8 / 60.3 (Places365)."""

_IMAGE_ABLATIONS = """Table 3: Large, 400 epochs of pretraining unless the row says otherwise; fine-tuning with what
Table 14b has after 400 epochs (after 1600 its layer decay is 0.85, its drop path 0.1)."""

_REST = """## Not reproducible here

| paper | what | expected | why |
|---|---|---|---|
| AVA v2.2 | detection of actions, large / huge, K400-pretrained | 39.8 / 42.5 mAP | no detection head here |

Intended differences from the authors' training: see `CHANGELOG.md` (position of RandAugment, mixing partners)."""


def text() -> str:
    """The page with its one computed figure."""
    config = overridden_config("hiera_base_16x224", {})
    return page().replace("HOURS", f"{_hours(CLIPS['k400'][1] * 15, config):.1f}")


if __name__ == "__main__":
    PAGE.write_text(text())
