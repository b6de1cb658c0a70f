"""What ZeRO's stages save and cost: bytes that a worker keeps, and bytes that it sends in an optimizer step.

With P parameters that learn, N workers, K micro-batches of a step on one worker, M values of optimizer state for each
parameter (AdamW 2, SGD 1), weights and sums in float32 (4 bytes) and gradients on the wire of w bytes:

    stage  keeps                                       sends, times (N - 1) / N
    0      4 P (weights, gradients) + 4 M P            2 w P
    1      4 P (weights, gradients) + 4 (M + 1) P / N  2 w P + 4 P
    2      4 P (weights) + 4 (M + 2) P / N             2 K w P + 4 P
    3      4 (M + 3) P / N                             K (w P + W and what was freed of W for the backward pass)

An all-reduce of n bytes sends 2 n (N - 1) / N from each worker (a ring, Patarasu and Yuan 2009), a reduce-scatter or an
all-gather half of that. DeepSpeed's stages 1 and 2 reduce by an all-reduce of which each worker keeps its share; the
paper's (arXiv 1910.02054) would send half. Stage 2 does so for every micro-batch. The 1 and 3 beside M are DeepSpeed's
own flat copies of a worker's share of the weights. Buckets (`BUCKET_ELEMENTS`) and what autocast and the backward pass
keep come on top. W are the bytes of the weights: w for elements that are used in matrix products alone, 4 for others.

F frozen parameters add their weights alone: 4 F, or 4 F / N with stage 3, where W holds them, too. Stage 3 does not
gather them again for the backward pass, which ends before them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from hiera_video.models.masked_autoencoder import FusionHead
from hiera_video.models.patch_embedding import PatchEmbed
from jobs.training.config import TrainConfig

# Elements of a gradient bucket. Large has 13 of them, so that most are reduced while the backward pass continues, and
# each is large enough for a link's full bandwidth. DeepSpeed's 5e8 would hold every gradient of Large back until the
# end, in buffers of 2 GB.
BUCKET_ELEMENTS = 2**24
# Weights that a rank holds whole at a time under ZeRO 3. DeepSpeed's 1e9 is more than Huge has: nothing would be freed
# between forward and backward pass, and ZeRO 3 would save no memory where it is needed.
LIVE_ELEMENTS = 2**27
STAGES = (0, 1, 2, 3)
FLOAT32_BYTES, BF16_BYTES = 4, 2
WIRE_BYTES = {"fp32": FLOAT32_BYTES, "bf16": BF16_BYTES}


@dataclass(frozen=True)
class Sharding:
    """What the costs depend on."""

    parameters: int
    """Elements that learn."""
    workers: int
    micro_batches: int
    """Of an optimizer step on one worker."""
    moments: int
    """Values of optimizer state for each parameter."""
    wire_bytes: int
    """Of a gradient's element between workers."""
    in_products: int = 0
    """Elements that are used in matrix products alone, see `weights_of_products`; frozen ones, too."""
    frozen: int = 0
    """Elements that do not learn."""
    bucket_elements: int = BUCKET_ELEMENTS
    live_elements: int = LIVE_ELEMENTS

    @property
    def elements(self) -> int:
        """Of all weights."""
        return self.parameters + self.frozen


def kept_bytes(stage: int, sharding: Sharding) -> dict[str, float]:
    """What a worker keeps from step to step, by purpose."""
    weights, whole = (float(FLOAT32_BYTES * elements) for elements in (sharding.elements, sharding.parameters))
    share = whole / sharding.workers
    buckets = FLOAT32_BYTES * sharding.bucket_elements * (2 if sharding.workers > 1 else 1)
    return {
        "weights": weights if stage < 3 else weights / sharding.workers,
        "gradients": whole if stage < 2 else share,
        # DeepSpeed updates a flat copy of this worker's share of the weights
        "optimizer": (sharding.moments * (share if stage else whole)) + (share if stage else 0.0),
        "buckets": float(buckets if stage else 0),
    }


def sent_bytes(stage: int, sharding: Sharding) -> float:
    """What a worker sends in an optimizer step."""
    gradients = sharding.wire_bytes * sharding.parameters
    weights = FLOAT32_BYTES * sharding.parameters
    others = (sharding.workers - 1) / sharding.workers
    if stage == 0:
        return others * 2 * gradients
    if stage == 1:
        return others * (2 * gradients + weights)
    if stage == 2:
        return others * (2 * sharding.micro_batches * gradients + weights)
    weights = FLOAT32_BYTES * sharding.elements - (FLOAT32_BYTES - sharding.wire_bytes) * sharding.in_products
    # What is used again soon enough, around the end of the forward pass, is not freed and gathered a second time.
    # Nor is what comes before all that learns, since the backward pass ends there.
    freed = max(0, sharding.parameters - sharding.live_elements) / sharding.elements
    return others * sharding.micro_batches * (gradients + weights * (1 + freed))


def weights_of_products(model: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters that a model uses in matrix products alone, where autocast rounds them to bfloat16."""
    for module in model.modules():
        if isinstance(module, nn.Linear | PatchEmbed | FusionHead):
            yield from module.parameters(recurse=False)


def wire_type(config: TrainConfig, workers: int) -> str:
    """What gradients are sent as. Matrix products under autocast give bfloat16 anyway; sums over micro-batches and the
    optimizer stay float32.

    DeepSpeed's own section `torch_autocast` would do the same, but it wraps the augmentation, too, and knows only
    `nn.Linear` itself, not its subclasses, which the model uses.
    """
    return "bf16" if config.precision == "bf16" and workers > 1 else "fp32"
