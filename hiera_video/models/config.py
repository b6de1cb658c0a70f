"""Model configs: frozen dataclasses with the public code's argument names, validated when they are created.

Source of the values: Hiera (arXiv 2306.00989); "paper" below.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from itertools import accumulate
from operator import floordiv, mod, mul
from typing import Any, Literal, get_type_hints

from hiera_video.models.hog import HOG_CELL_PIXELS
from hiera_video.models.random_draws import num_visible_units, require_hidden_units
from hiera_video.rules import Checked, Rules

TARGETS = ("normalized_pixels", "pixels", "hog")
DECODERS = ("full", "subset", "cross")
INTERPOLATIONS = ("bilinear", "bicubic")
COLOURS = 3
RESIZED_BELOW = 224  # pixels


@dataclass(frozen=True)
class EncoderConfig(Checked):
    """The encoder: for images if ``input_size`` is (height, width), for video if it is (frames, height, width)."""

    input_size: tuple[int, ...] = (224, 224)
    """Frames (video only), height and width of the input, pixels."""
    in_chans: int = 3
    """Colour channels."""
    embed_dim: int = 96
    """Channels of the first stage."""
    num_heads: int = 1
    """Attention heads of the first stage."""
    stages: tuple[int, ...] = (2, 3, 16, 3)
    """Blocks per stage."""
    q_pool: int = 3
    """Stage entries that pool; 3 in the classifier, 2 in pretraining (paper §A)."""
    q_stride: tuple[int, ...] = (2, 2)
    """Pooling per stage entry, tokens per axis."""
    mask_unit_size: tuple[int, ...] = (8, 8)
    """Tokens of a mask unit per axis: q_stride to the power of the number of stage entries."""
    mask_unit_attn: tuple[bool, ...] = (True, True, False, False)
    """Stages that attend within mask units; the first block of a stage attends as the stage before."""
    dim_mul: float = 2.0
    """Growth of the channels at each stage."""
    head_mul: float = 2.0
    """Growth of the heads at each stage."""
    patch_kernel: tuple[int, ...] = (7, 7)
    """Kernel of the patch embedding, pixels per axis."""
    patch_stride: tuple[int, ...] = (4, 4)
    """Stride of the patch embedding, pixels per axis."""
    patch_padding: tuple[int, ...] = (3, 3)
    """Padding of the patch embedding, pixels per axis."""
    mlp_ratio: float = 4.0
    """Hidden width of an MLP over its channels."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block; it rises linearly from 0 in the first."""
    sep_pos_embed: bool = False
    """Positions in space and time as a sum of two tables."""
    pixel_mean: tuple[float, ...] = (0.45, 0.45, 0.45)
    """Mean of red, green and blue (0 to 1) that is taken from the pixels: 0.45 of videos (SlowFast), ImageNet's in
    the presets of images."""
    pixel_std: tuple[float, ...] = (0.225, 0.225, 0.225)
    """Deviation that the pixels are divided by."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How images are resized, with antialiasing; bicubic in their presets (MAE)."""
    crop_share: float | None = None
    """Share of an image's short side that the test crop takes. None: 224/256 up to 224 pixels, above them all of
    it (MAE)."""

    def rules(self) -> Rules:
        axes = len(self.input_size)
        rule = "must be (height, width) or (frames, height, width); use 224,224 or 16,224,224"
        yield "input_size", axes in (2, 3), rule
        for key in ("q_stride", "mask_unit_size", "patch_kernel", "patch_stride", "patch_padding"):
            rule = f"must have {axes} numbers, as input_size={self.input_size}; give one per axis"
            yield key, len(getattr(self, key)) == axes, rule
        yield "sep_pos_embed", not self.sep_pos_embed or axes == 3, "is for video only; use false"
        counts = ("in_chans", "embed_dim", "num_heads", "stages", "q_stride", "patch_kernel", "patch_stride")
        yield from self._positive(*counts, "dim_mul", "head_mul", "mlp_ratio")
        yield "head_mul", min(self.heads) > 0, "must leave every stage a head; use 2"
        yield "dim_mul", min(self.widths) > 0, "must leave every stage a channel; use 2"
        whole_units = min(self.input_size) > 0 and not any(map(mod, self.input_size, self.unit_pixels))
        rule = (
            f"each axis must be a multiple of the mask unit, {self.unit_pixels} pixels; "
            f"the nearest sizes are {self._nearest_size(0)} and {self._nearest_size(1)}"
        )
        yield "input_size", whole_units, rule
        entries = len(self.stages) - 1
        yield "q_pool", 0 <= self.q_pool <= entries, f"must lie in [0, {entries}]; use one per stage entry"
        unit = tuple(stride**entries for stride in self.q_stride)
        yield "mask_unit_size", self.mask_unit_size == unit, f"must be q_stride to the power {entries}; use {unit}"
        rule = f"must have one value for each of {len(self.stages)} stages; use true,true,false,false"
        yield "mask_unit_attn", len(self.mask_unit_attn) == len(self.stages), rule
        for width, heads in zip(self.widths, self.heads, strict=True):
            rule = f"must give every stage channels divisible by its heads, here {width} by {heads}; change num_heads"
            yield "embed_dim", width % heads == 0, rule
        for key in ("pixel_mean", "pixel_std"):
            rule = "must have a number each for red, green and blue; use 0.45,0.45,0.45"
            yield key, len(getattr(self, key)) == COLOURS, rule
        yield "pixel_std", min(self.pixel_std) > 0, "must be positive; use 0.225,0.225,0.225"
        yield "interpolation", self.interpolation in INTERPOLATIONS, f"must be one of {INTERPOLATIONS}; use bicubic"
        yield "crop_share", 0 < self.test_crop_share <= 1, "must lie in (0, 1]; leave it out for the default"
        yield "drop_path_rate", 0.0 <= self.drop_path_rate < 1.0, "must lie in [0, 1); use 0.1"

    def _positive(self, *keys: str) -> Rules:
        for key in keys:
            value = getattr(self, key)
            smallest = min(value, default=0) if isinstance(value, tuple) else value
            yield key, smallest > 0, "must be positive; use at least 1"

    def _nearest_size(self, more: int) -> tuple[int, ...]:
        """Whole mask units in the input, rounded down, or up with ``more`` = 1."""
        sizes = zip(self.input_size, self.unit_pixels, strict=True)
        return tuple(max(1, (size + more * (pixels - 1)) // pixels) * pixels for size, pixels in sizes)

    @property
    def is_video(self) -> bool:
        """Whether the input has an axis of time."""
        return len(self.input_size) == 3

    @property
    def test_crop_share(self) -> float:
        """Share of an image's short side that the test crop takes."""
        if self.crop_share is not None:
            return self.crop_share
        return 224 / 256 if self.input_size[-1] <= RESIZED_BELOW else 1.0

    @property
    def token_grid(self) -> tuple[int, ...]:
        """Tokens per axis after the patch embedding."""
        return tuple(map(floordiv, self.input_size, self.patch_stride))

    @property
    def unit_pixels(self) -> tuple[int, ...]:
        """Frames (video only), height and width of one mask unit, pixels."""
        return tuple(map(mul, self.mask_unit_size, self.patch_stride))

    @property
    def unit_grid(self) -> tuple[int, ...]:
        """Mask units per axis."""
        return tuple(map(floordiv, self.input_size, self.unit_pixels))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return _grown(self.embed_dim, self.dim_mul, len(self.stages))

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each stage."""
        return _grown(self.num_heads, self.head_mul, len(self.stages))


@dataclass(frozen=True)
class HieraConfig(EncoderConfig):
    """An encoder with a classification head."""

    num_classes: int = 1000
    """Classes of the head."""
    head_dropout: float = 0.0
    """Dropout of the features before the head: 0.3 (Base, Base+), 0.5 (Large, Huge) on Kinetics (paper Tab. 11b)."""
    head_init_scale: float = 0.001
    """Factor on the head's initial weights."""

    def rules(self) -> Rules:
        yield from super().rules()
        yield "num_classes", self.num_classes > 0, "must be positive; give the number of classes"
        yield "head_dropout", 0.0 <= self.head_dropout < 1.0, "must lie in [0, 1); use 0.3"


@dataclass(frozen=True)
class MaskedAutoencoderConfig(EncoderConfig):
    """An encoder with a decoder and a reconstruction target."""

    q_pool: int = 2
    """Stage entries that pool; 2 in pretraining, so that a prediction covers 16×16 pixels (paper §A)."""
    mask_ratio: float = 0.6
    """Share of hidden mask units: 0.9 for video, 0.6 for images (paper §4)."""
    multi_scale_fusion: bool = True
    """Sum the stages' maps for the decoder; without it the last map alone (paper Tab. 3a)."""
    target: Literal["normalized_pixels", "pixels", "hog"] = "normalized_pixels"
    """What hidden tokens predict (paper Tab. 3c)."""
    decoder: Literal["full", "subset", "cross"] = "full"
    """All tokens (the paper's); visible and a share of hidden ones; or hidden queries over the encoder's output."""
    decoder_share: float = 0.5
    """Share of the hidden tokens that a `subset` or `cross` decoder predicts."""
    decoder_embed_dim: int = 512
    """Channels of the decoder."""
    decoder_depth: int = 8
    """Blocks of the decoder (paper Tab. 3e)."""
    decoder_num_heads: int = 16
    """Heads of the decoder: 16 in the public code and weights, although the paper's table says 8."""

    def rules(self) -> Rules:
        yield from super().rules()
        yield "target", self.target in TARGETS, f"must be one of {TARGETS}; use normalized_pixels"
        yield "decoder", self.decoder in DECODERS, f"must be one of {DECODERS}; use full"
        yield "decoder_share", 0.0 < self.decoder_share <= 1.0, "must lie in (0, 1]; use 0.5"
        yield from self._positive("decoder_embed_dim", "decoder_depth", "decoder_num_heads")
        rule = f"must be divisible by decoder_num_heads={self.decoder_num_heads}; change one of them"
        yield "decoder_embed_dim", self.decoder_embed_dim % self.decoder_num_heads == 0, rule
        rule = "must not pool time: a prediction covers one token in time; use 1,2,2"
        yield "q_stride", not self.is_video or self.pooled_unit[0] == self.mask_unit_size[0], rule
        rule = (
            f"a prediction covers {self.prediction_pixels} pixels, with target=hog it must be a multiple of the "
            f"{HOG_CELL_PIXELS} of a cell; use q_pool=2 or target=normalized_pixels"
        )
        yield "q_pool", self.target != "hog" or self.prediction_pixels % HOG_CELL_PIXELS == 0, rule
        units = math.prod(self.unit_grid)
        require_hidden_units(num_visible_units(units, self.mask_ratio), units, f"mask_ratio={self.mask_ratio}")

    @property
    def pooled_unit(self) -> tuple[int, ...]:
        """Tokens of a mask unit per axis at the decoder's resolution."""
        return tuple(map(floordiv, self.mask_unit_size, (stride**self.q_pool for stride in self.q_stride)))

    @property
    def prediction_pixels(self) -> int:
        """Height and width of the square that one decoder token predicts, pixels."""
        return self.patch_stride[-1] * math.prod(self.q_stride[-1:] * self.q_pool)

    @property
    def decoder_tokens(self) -> int:
        """Tokens of the decoder's grid."""
        return math.prod(self.unit_grid) * math.prod(self.pooled_unit)


ModelConfig = HieraConfig | MaskedAutoencoderConfig


def replace(config: ModelConfig, overrides: dict[str, Any]) -> ModelConfig:
    """A copy with other values; lists become tuples.

    Raises:
        ValueError: an unknown key, or a value against its rule.
    """
    known = get_type_hints(type(config))
    unknown = sorted(set(overrides) - set(known))
    if unknown:
        raise ValueError(f"{unknown[0]}: {type(config).__name__} has no such key; known: {', '.join(sorted(known))}")
    return dataclasses.replace(config, **{key: _tuples(value) for key, value in overrides.items()})


def _grown(first: int, factor: float, stages: int) -> tuple[int, ...]:
    """A number that grows at every stage, rounded down each time."""
    return tuple(accumulate(range(stages - 1), lambda number, _: int(number * factor), initial=first))


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
