"""The hierarchical encoder and its classifier, for images and video.

Shapes: B batch, T frames, H height, W width, U mask units, K visible units, M tokens of a unit, C channels; t, h, w
tokens along the axes of a unit.

Source: Hiera (arXiv 2306.00989) and its public code; parameter names are composed here (`encoder.blocks.0...`) and
mapped to the public flat names in `hiera_video.weights.key_mapping`.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hiera_video.models.blocks import NORM_EPSILON, HieraBlock, init_weights, run_block
from hiera_video.models.config import EncoderConfig, HieraConfig
from hiera_video.models.cpu import run_in_unit_groups
from hiera_video.models.patch_embedding import PatchEmbed, PositionEmbedding
from hiera_video.models.random_draws import (
    Draws,
    drop_path_scales,
    dropout,
    uniforms,
    validate_keep_mask,
    visible_unit_index,
)
from hiera_video.models.token_order import TokenOrder

INITIAL_DEVIATION = 0.02


class StageOutput(NamedTuple):
    """Tokens at the end of a stage: unrolled ``[B, U, M, C]`` and the poolings they went through."""

    tokens: Tensor
    poolings: int


class HieraEncoder(nn.Module):
    """Patch embedding, positions and blocks; also the feature backbone.

    ``recompute_activations`` frees each block's activations and computes them again in the backward pass.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute_activations = False
        self.order = TokenOrder(config.token_grid, (config.q_stride,) * (len(config.stages) - 1))
        self.patch_embed = PatchEmbed(config, self.order)
        self.pos_embed = PositionEmbedding(config, self.order)
        self.stage_ends = [sum(config.stages[: stage + 1]) - 1 for stage in range(len(config.stages))]
        blocks = _blocks(config)
        self.blocks = nn.ModuleList(blocks)
        self.local_blocks = len(list(takewhile(lambda block: block.attn.within_units, blocks)))
        rates = torch.linspace(0, config.drop_path_rate, len(self.blocks), device="cpu")
        self.register_buffer("drop_path_rates", rates, persistent=False)

    def forward(self, pixels: Tensor, keep_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """The stages' maps in spatial order, of normalised floats ``[B, 3, T, H, W]`` or ``[B, 3, H, W]``.

        Without a mask ``[B, T, H, W, C]`` or ``[B, H, W, C]`` each; with one (bool ``[B, U]``, True = visible; reading
        its count waits for the device), by visible unit in ascending order: ``[B, K, t, h, w, C]`` or
        ``[B, K, h, w, C]``.

        Raises:
            ValueError: an input or a mask of the wrong shape or type.
        """
        self.check_input(pixels)
        if keep_mask is None:
            return tuple(self.order.reroll(*stage) for stage in self.encode(pixels))
        visible = validate_keep_mask(keep_mask, self.order.num_units, pixels.shape[0])
        stages = self.encode(pixels, keep_mask, visible_unit_index(keep_mask, visible))
        return tuple(self.order.reroll_within_units(*stage) for stage in stages)

    def encode(
        self,
        pixels: Tensor,
        keep_mask: Tensor | None = None,
        unit_index: Tensor | None = None,
        drop_path: Tensor | None = None,
    ) -> list[StageOutput]:
        """Unrolled tokens at the end of every stage; ``unit_index`` ``[B, K]`` names the visible units.

        ``drop_path`` are uniform numbers ``[blocks, 2, B]``; none in training: drawn here.
        """
        tokens = self.patch_embed(pixels, keep_mask, unit_index) + self.pos_embed(unit_index)  # [B, U or K, M, C]
        scales = self._branch_scales(pixels, drop_path)
        run_local = partial(self._run, range(self.local_blocks), scales)
        # Units are independent in the first blocks; stochastic depth, however, goes by sample.
        *ends, tokens = run_in_unit_groups(run_local, tokens) if scales is None else run_local(tokens)
        *later_ends, _ = self._run(range(self.local_blocks, len(self.blocks)), scales, tokens)
        return [StageOutput(end, min(stage, self.config.q_pool)) for stage, end in enumerate([*ends, *later_ends])]

    def _run(self, blocks: range, scales: Tensor | None, tokens: Tensor) -> list[Tensor]:
        """The tokens at the end of every stage, and as the last entry those after the last of these blocks."""
        ends = []
        for index in blocks:
            scale = None if scales is None else scales[index]
            tokens = run_block(self.blocks[index], tokens, scale, recompute=self.recompute_activations)
            if index in self.stage_ends:
                ends.append(tokens)
        return [*ends, tokens]

    def draw_drop_path(
        self, batch: int, generator: torch.Generator | None, device: torch.device | None
    ) -> Tensor | None:
        """Uniform numbers ``[blocks, 2, B]`` for one forward pass; none when the rate is 0."""
        if self.config.drop_path_rate == 0.0:
            return None
        return uniforms((len(self.blocks), 2, batch), generator, device)

    def _branch_scales(self, pixels: Tensor, noise: Tensor | None) -> Tensor | None:
        if not self.training or self.config.drop_path_rate == 0.0:
            return None
        if noise is None:
            noise = self.draw_drop_path(pixels.shape[0], None, pixels.device)
        assert isinstance(self.drop_path_rates, Tensor)
        return drop_path_scales(noise, self.drop_path_rates) if noise is not None else None

    def check_input(self, pixels: Tensor) -> None:
        """Refuse an input of the wrong rank, channels, size or type.

        Raises:
            ValueError: with what is expected and the remedy.
        """
        config, shape = self.config, list(pixels.shape)
        expected = ["B", config.in_chans, *config.input_size]
        if pixels.ndim != len(expected):
            layout = "[B, 3, T, H, W]" if config.is_video else "[B, 3, H, W]"
            raise ValueError(f"input has shape {shape}: must be {layout}, here {expected}; add or remove an axis")
        if not pixels.is_floating_point():
            raise ValueError(
                f"input is {pixels.dtype}: must be floats {expected}; normalize_video makes them from uint8 frames"
            )
        if shape[1] != config.in_chans:
            raise ValueError(
                f"input has {shape[1]} channels on axis 1, shape {shape}: must be {expected}; "
                "put channels before frames (normalize_video does) or build the model with in_chans"
            )
        if (size := tuple(shape[2:])) != config.input_size:
            raise ValueError(
                f"input has size {size}: the model was built for {config.input_size}; resize the input or build the "
                f"model with input_size={size}"
            )


class EncoderModel(nn.Module):
    """A model around an encoder."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.encoder = HieraEncoder(config)

    @property
    def num_mask_units(self) -> int:
        """Mask units of one input."""
        return self.encoder.order.num_units


class Hiera(EncoderModel):
    """The classifier: encoder, mean over tokens, LayerNorm, linear head. Returns logits, in training and after."""

    def __init__(self, config: HieraConfig) -> None:
        super().__init__(config)
        self.config = config
        self.norm = nn.LayerNorm(config.widths[-1], eps=NORM_EPSILON)
        self.head = nn.Linear(config.widths[-1], config.num_classes)
        # As the public classifier: biases of 0.02, also in the LayerNorms.
        init_matrix = partial(nn.init.trunc_normal_, std=INITIAL_DEVIATION)
        init_weights(self, init_matrix, bias=INITIAL_DEVIATION)
        init_matrix(self.encoder.patch_embed.weight)
        with torch.no_grad():
            self.head.weight.mul_(config.head_init_scale)
            self.head.bias.mul_(config.head_init_scale)

    def forward(self, pixels: Tensor, draws: Draws | None = None) -> Tensor:
        """Normalised floats ``[B, 3, T, H, W]`` or ``[B, 3, H, W]`` → logits ``[B, classes]``.

        ``draws`` are the random numbers of a training pass (`draw`); ignored in evaluation.
        """
        features = self.embed(pixels, draws)
        if self.training and self.config.head_dropout > 0.0:
            noise = torch.rand_like(features) if draws is None or draws.head_dropout is None else draws.head_dropout
            features = dropout(features, noise, self.config.head_dropout)
        logits: Tensor = self.head(features)
        return logits

    def embed(self, pixels: Tensor, draws: Draws | None = None) -> Tensor:
        """The features before the head ``[B, C]``, for retrieval and nearest-neighbour probes."""
        self.encoder.check_input(pixels)
        stages = self.encoder.encode(pixels, drop_path=None if draws is None else draws.drop_path)
        pooled: Tensor = self.norm(stages[-1].tokens.mean(dim=(1, 2)))
        return pooled

    def features(self, pixels: Tensor, keep_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """The four stages' maps in spatial order, or by visible unit with a mask; see `HieraEncoder.forward`."""
        maps: tuple[Tensor, ...] = self.encoder(pixels, keep_mask)
        return maps

    def draw(self, batch: int, generator: torch.Generator | None = None, device: torch.device | None = None) -> Draws:
        """The random numbers of one training pass over ``batch`` samples."""
        dropout_noise = None
        drop_path = self.encoder.draw_drop_path(batch, generator, device)
        if self.config.head_dropout > 0.0:
            dropout_noise = uniforms((batch, self.config.widths[-1]), generator, device)
        return Draws(drop_path=drop_path, head_dropout=dropout_noise)


def _blocks(config: EncoderConfig) -> list[HieraBlock]:
    """The stages' blocks. A stage's first block pools and still attends as the stage before (paper §3)."""
    blocks, dim, previous_attention = [], config.embed_dim, config.mask_unit_attn[0]
    for stage, depth in enumerate(config.stages):
        within_units = config.mask_unit_attn[stage]
        for position in range(depth):
            first = stage > 0 and position == 0
            pool = math.prod(config.q_stride) if first and stage <= config.q_pool else 1
            attends = previous_attention if first else within_units
            width = config.widths[stage]
            blocks.append(HieraBlock(dim, width, config.heads[stage], config.mlp_ratio, pool, attends))
            dim = width
        previous_attention = within_units
    return blocks
