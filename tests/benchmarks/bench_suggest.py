"""Whether 100 suggested labels give a better classifier than 100 random ones: real and rendered clips, three seeds.

A classifier (a linear head on the embeddings of `tests.benchmarks.finding_encoder`) learns from a few random labels,
scores the others, and gets 100 more: suggested as `suggest` does it, for several sizes of its pool, or random.
Compared is top-1 on clips that nobody could label. Real: the eight classes of UCF15 that the encoder has not seen
(needs UCF15), as they are and with four of them rare. Rendered: the eight motions, of which a frame shows nothing.
Legend: N clips, D values of an embedding, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch.nn import functional

from hiera_video.inference import embed_frames
from hiera_video.models.hiera import Hiera
from hiera_video.weights.checkpoint_files import load_model
from jobs.suggest.choice import UNCERTAINTY, Pool, choose, uncertainty
from tests.benchmarks.finding_encoder import FRAMES, SEEN_CLASSES, SIDE, cache, encoder_file, kept_clips
from tests.benchmarks.motion_learning import Task, clips_of, mean_and_spread

SEEDS, FIRST_LABELS, COUNT, POOLS, RARE = (0, 1, 2), 40, 100, (1, 2, 4, 10), 10
RENDERED = Task(0.0, 0, 0, 0, 0, 0, frames=FRAMES, size=SIDE, margin=0)
AT_ONCE = 32
Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]


class Embedded(NamedTuple):
    """Clips as embeddings ``[N, D]``, and their classes."""

    features: Floats
    labels: Numbers
    is_test: npt.NDArray[np.bool_]


def run(quick: bool) -> dict[str, Any]:
    """Top-1 in percent, mean and deviation over the seeds, for each way to spend the labels."""
    real = real_clips(quick)
    sets = {
        "UCF15, unseen classes": real,
        "UCF15, four classes rare": with_rare_classes(real),
        "rendered motions": rendered_clips(400 if quick else 1600),
    }
    return {name: compared(clips) for name, clips in sets.items()}


def with_rare_classes(clips: Embedded) -> Embedded:
    """Of half of the classes only every tenth clip can be labelled; the test stays as it is."""
    is_rare = (clips.labels % 2 == 0) & ~clips.is_test
    kept = ~is_rare | (np.cumsum(is_rare) % RARE == 0)
    return Embedded(clips.features[kept], clips.labels[kept], clips.is_test[kept])


def real_clips(quick: bool) -> Embedded:
    """The clips of the classes that the encoder has not seen."""
    clips = kept_clips()
    unseen = np.flatnonzero(clips.labels >= SEEN_CLASSES)[:: 3 if quick else 1]
    margin = (clips.frames.shape[2] - SIDE) // 2
    middle = clips.frames[unseen, :, margin : margin + SIDE, margin : margin + SIDE]
    return Embedded(embedded(middle), clips.labels[unseen] - SEEN_CLASSES, clips.is_test[unseen])


def rendered_clips(count: int) -> Embedded:
    """Rendered motions, the last third to test with."""
    frames, labels = clips_of(RENDERED, "suggest", count, 1, cache())
    return Embedded(embedded(frames), labels, np.arange(count) >= count * 2 // 3)


@torch.inference_mode()
def embedded(frames: npt.NDArray[np.uint8]) -> Floats:
    """uint8 ``[N, T, S, S, 3]`` → features before the head ``[N, D]``."""
    model = load_model(encoder_file())
    assert isinstance(model, Hiera)
    parts = (torch.from_numpy(frames[start : start + AT_ONCE].copy()) for start in range(0, len(frames), AT_ONCE))
    return torch.cat([embed_frames(model.eval(), part) for part in parts]).numpy()


def compared(clips: Embedded) -> dict[str, str]:
    """Every way to choose the labels, by the same first labels for each seed."""
    scores: dict[str, list[float]] = {}
    for seed in SEEDS:
        for name, top1 in _of_one_seed(clips, seed):
            scores.setdefault(name, []).append(100 * top1)
    return {name: "{:.1f} ± {:.1f}".format(*mean_and_spread(values)) for name, values in scores.items()}


def _of_one_seed(clips: Embedded, seed: int) -> Iterator[tuple[str, float]]:
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.flatnonzero(~clips.is_test))
    first, rest = order[:FIRST_LABELS], order[FIRST_LABELS:]
    head = fitted(clips, first)
    yield f"{FIRST_LABELS} labels", top1(clips, head)
    yield f"+ {COUNT} random", top1(clips, fitted(clips, np.concatenate([first, rest[:COUNT]])))
    for pool in POOLS:
        labelled = np.concatenate([first, suggested(clips, head, first, rest, pool)])
        yield f"+ {COUNT} suggested, pool={pool}", top1(clips, fitted(clips, labelled))
    yield f"all {len(order)} labels", top1(clips, fitted(clips, order))


def suggested(clips: Embedded, head: torch.nn.Linear, first: Numbers, rest: Numbers, pool: int) -> Numbers:
    """The clips that `suggest` would choose with these keys."""
    scores = -np.sort(-probabilities(clips.features[rest], head), axis=1)
    uncertain = uncertainty(pa.chunked_array([pa.array(list(scores), pa.list_(pa.float32()))]), False)
    best = np.argsort(-uncertain, kind="stable")[: pool * COUNT]
    table = pa.table(
        {"number": rest[best], "embedding": list(clips.features[rest[best]]), UNCERTAINTY: uncertain[best]}
    )
    known = clips.features[first] / np.linalg.norm(clips.features[first], axis=1, keepdims=True)
    return np.asarray(choose(Pool(table, known, []), COUNT)["number"].to_numpy())


def fitted(clips: Embedded, numbers: Numbers) -> torch.nn.Linear:
    """A linear head on standardised features, by L-BFGS with weight decay."""
    features, labels = torch.from_numpy(clips.features[numbers]), torch.from_numpy(clips.labels[numbers])
    head = torch.nn.Linear(features.shape[1], int(clips.labels.max()) + 1)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(head(features), labels) + 1e-3 * head.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return head


def probabilities(features: Floats, head: torch.nn.Linear) -> Floats:
    """``[N, D]`` → ``[N, C]``."""
    with torch.inference_mode():
        return head(torch.from_numpy(features)).softmax(dim=1).numpy()


def top1(clips: Embedded, head: torch.nn.Linear) -> float:
    """Share of the test clips whose class ranks first."""
    found = probabilities(clips.features[clips.is_test], head).argmax(axis=1)
    return float((found == clips.labels[clips.is_test]).mean())
