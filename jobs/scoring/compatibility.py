"""Whether a classifier can be scored on a prepared set: labels, class names, sampling of frames."""

from __future__ import annotations

import dataclasses

from jobs.core.cli import echo
from jobs.core.errors import UserError
from jobs.scoring.classifier import ClassifierWeights
from pipeline.datasets.evaluation import ViewProtocol
from pipeline.schema import UNLABELLED
from pipeline.shards.reader import PreparedSet


def refuse_nothing_to_score(prepared: PreparedSet, split: str) -> None:
    """`UserError` unless the split has labelled clips."""
    if prepared.num_clips(split) == 0:
        raise UserError(f"split={split}: {prepared.uri} has no such clips; it has {prepared.splits()}")
    if prepared.num_clips(split, labelled_only=True) == 0:
        raise UserError(
            f"split={split}: no clip of it has a label to compare with (data={prepared.uri}); use `jobs.tag`, or "
            "prepare the set with its annotations"
        )


def with_class_names(weights: ClassifierWeights, prepared: PreparedSet) -> ClassifierWeights:
    """Public weights without a class list take the set's, in its order; `UserError` unless it has a name per logit."""
    if weights.has_class_names:
        return weights
    if len(prepared.classes) != len(weights.classes):
        raise UserError(
            f"init={weights.uri}: has {len(weights.classes)} classes without names, data={prepared.uri} has "
            f"{len(prepared.classes)}; give the weights' class list by classes="
        )
    echo(
        f"init={weights.uri} has no class names; the {len(prepared.classes)} names of data={prepared.uri} are used, in "
        "its order. If the weights have another order, scores are at chance: give classes=",
        warning=True,
    )
    return dataclasses.replace(weights, classes=prepared.classes)


def match_classes(weights: ClassifierWeights, prepared: PreparedSet, separator: str = "") -> dict[int, tuple[int, ...]]:
    """Class number in the set → numbers of the logits with the same names; several for a label of several parts.

    `UserError` where the set has classes that the classifier does not know.
    """
    logits = {name: number for number, name in enumerate(weights.classes)}
    parts = [name.split(separator) if separator else [name] for name in prepared.classes]
    unknown = sorted({part for names in parts for part in names} - logits.keys())
    if unknown:
        raise UserError(
            f"data={prepared.uri}: has {len(unknown)} classes that the classifier was not trained on "
            f"({', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}); give the set of its own class list"
        )
    matched = {number: tuple(logits[name] for name in names) for number, names in enumerate(parts)}
    return matched | {UNLABELLED: ()}


def refuse_other_protocol(weights: ClassifierWeights, views: ViewProtocol) -> None:
    """`UserError` for several views of an image: the published protocol has one, the centre."""
    if weights.media == "image" and views.views != 1:
        raise UserError(
            f"views.clips={views.clips} views.crops={views.crops}: an image has one view; take the recipe "
            "in1k, or give views.clips=1 views.crops=1"
        )


def warn_other_sampling(weights: ClassifierWeights, sampling: str, frame_stride: int) -> None:
    """Warn when frames are not chosen as in training: scores would be lower than they could be."""
    given = {"sampling": sampling, "frame_stride": frame_stride}
    other = {key: value for key, value in weights.sampling.items() if given[key] != value}
    if other.get("sampling", sampling) == sampling == "segments":
        return  # segments have no stride
    if other:
        expected = " ".join(f"{key}={value}" for key, value in other.items())
        echo(f"init={weights.uri} was trained with {expected}; give {expected} to score it so", warning=True)
