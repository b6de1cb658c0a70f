"""The masked autoencoder: mask, visible encoding, multi-scale fusion, decoder, loss.

Shapes: B batch, U mask units, K visible units, M tokens of a unit, C channels, N hidden tokens, P values.

Source: Hiera (arXiv 2306.00989) §4 and its public code; MAE (arXiv 2111.06377); MAE-ST (arXiv 2205.09113).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from hiera_video.models.blocks import NORM_EPSILON, init_weights
from hiera_video.models.config import MaskedAutoencoderConfig
from hiera_video.models.decoder import Decoder
from hiera_video.models.hiera import EncoderModel, StageOutput
from hiera_video.models.random_draws import (
    Draws,
    keep_smallest,
    num_visible_units,
    require_hidden_units,
    uniforms,
    validate_keep_mask,
    visible_unit_index,
)
from hiera_video.models.targets import token_targets
from hiera_video.models.token_order import TokenOrder


class MaeOutput(NamedTuple):
    """The result of one pass of the masked autoencoder."""

    loss: Tensor
    """Mean squared error over the predicted tokens, scalar."""
    prediction: Tensor
    """``[B·N, P]``: the predicted hidden tokens of the batch, raster order within a sample."""
    target: Tensor
    """``[B·N, P]``: their targets."""
    keep_mask: Tensor
    """bool ``[B, U]``, True = visible."""


class MaskedAutoencoder(EncoderModel):
    """Encoder over the visible mask units, decoder over the hidden tokens."""

    def __init__(self, config: MaskedAutoencoderConfig) -> None:
        super().__init__(config)
        self.config = config
        self.fusion = MultiScaleFusion(config)
        self.encoder_norm = nn.LayerNorm(config.widths[-1], eps=NORM_EPSILON)
        self.decoder = Decoder(config)
        init_weights(self, nn.init.xavier_uniform_, bias=0.0)  # as MAE
        nn.init.xavier_uniform_(self.encoder.patch_embed.weight.data.flatten(1))
        token_of_unit = self.encoder.order.raster_index(config.q_pool)  # [U, M]
        unit_of_token = token_of_unit.flatten().argsort() // token_of_unit.shape[1]  # the inverse permutation's units
        self.register_buffer("token_of_unit", token_of_unit, persistent=False)
        self.register_buffer("unit_of_token", unit_of_token, persistent=False)
        self.token_of_unit: Tensor
        self.unit_of_token: Tensor

    def forward(
        self,
        pixels: Tensor,
        mask_ratio: float | None = None,
        keep_mask: Tensor | None = None,
        draws: Draws | None = None,
    ) -> MaeOutput:
        """Mask, encode, decode, compare.

        Args:
            pixels: normalised floats ``[B, 3, T, H, W]`` or ``[B, 3, H, W]``.
            mask_ratio: share of hidden units; the configuration's by default.
            keep_mask: bool ``[B, U]``, True = visible; drawn when missing. How many units it keeps must be known
                without reading it, so that nothing waits for the device: it is the count that ``mask_ratio`` gives.
                In plain execution on a CPU, where reading costs nothing, the mask is validated, and without a
                ``mask_ratio`` it may keep any number; elsewhere call `validate_keep_mask` with
                ``some_hidden=True`` on masks of users.
            draws: random numbers of this pass (`draw`); drawn when missing.

        Raises:
            ValueError: an input or mask of the wrong shape or type, or a ratio or mask that keeps too few units
                or hides none.
        """
        self.encoder.check_input(pixels)
        draws = Draws() if draws is None else draws
        keep_mask, visible = self._mask(pixels, mask_ratio, keep_mask)
        unit_index = visible_unit_index(keep_mask, visible)  # [B, K]
        stages = self.encoder.encode(pixels, keep_mask, unit_index, draws.drop_path)
        latent = self.encoder_norm(self.fusion(stages))  # [B, K, M, C]
        visible_index = self.token_of_unit[unit_index].flatten(1)  # [B, K·M]
        hidden_index = self._predicted_tokens(keep_mask, visible, draws.decoder_tokens)  # [B, N]
        prediction = self.decoder(latent.flatten(1, 2), visible_index, hidden_index).flatten(0, 1)  # [B·N, P]
        target = token_targets(self.config, pixels, hidden_index).flatten(0, 1)
        return MaeOutput(functional.mse_loss(prediction.float(), target), prediction, target, keep_mask)

    def draw(
        self,
        batch: int,
        generator: torch.Generator | None = None,
        device: torch.device | None = None,
        mask_ratio: float | None = None,
    ) -> Draws:
        """The random numbers of one training pass over ``batch`` samples (the mask apart: `random_keep_mask`)."""
        drop_path = self.encoder.draw_drop_path(batch, generator, device)
        if self.config.decoder == "full":
            return Draws(drop_path=drop_path)
        hidden = self._hidden_tokens(self._visible_units(mask_ratio))
        return Draws(drop_path=drop_path, decoder_tokens=uniforms((batch, hidden), generator, device))

    def _visible_units(self, mask_ratio: float | None) -> int:
        ratio = self.config.mask_ratio if mask_ratio is None else mask_ratio
        return require_hidden_units(
            num_visible_units(self.num_mask_units, ratio), self.num_mask_units, f"mask_ratio={ratio}"
        )

    def _mask(self, pixels: Tensor, mask_ratio: float | None, keep_mask: Tensor | None) -> tuple[Tensor, int]:
        """The mask and its number of visible units."""
        if keep_mask is None:
            visible = self._visible_units(mask_ratio)
            noise = torch.rand(pixels.shape[0], self.num_mask_units, device=pixels.device)
            return keep_smallest(noise, visible), visible
        if torch.compiler.is_compiling() or keep_mask.device.type != "cpu":
            return keep_mask, self._visible_units(mask_ratio)
        count = validate_keep_mask(keep_mask, self.num_mask_units, pixels.shape[0], some_hidden=True)
        expected = count if mask_ratio is None else self._visible_units(mask_ratio)
        if count != expected:
            raise ValueError(
                f"keep_mask keeps {count} units, mask_ratio={mask_ratio} keeps {expected} of {self.num_mask_units}: "
                "must agree; give the ratio that made the mask, or none"
            )
        return keep_mask, count

    def _hidden_tokens(self, visible_units: int) -> int:
        return (self.num_mask_units - visible_units) * self.token_of_unit.shape[1]

    def _predicted_tokens(self, keep_mask: Tensor, visible_units: int, noise: Tensor | None) -> Tensor:
        """Raster numbers of the tokens to predict, ascending: int64 ``[B, N]``."""
        total = self._hidden_tokens(visible_units)
        hidden = keep_mask[:, self.unit_of_token].to(torch.uint8).argsort(dim=1, stable=True)[:, :total]
        if self.config.decoder == "full":
            return hidden
        if noise is None:
            noise = torch.rand(hidden.shape, device=hidden.device)
        chosen = noise.argsort(dim=1)[:, : max(1, int(total * self.config.decoder_share))]
        return hidden.gather(1, chosen.sort(dim=1).values)


class MultiScaleFusion(nn.Module):
    """Bring every stage's map to the decoder's resolution and width by a strided convolution, and sum (paper §4).

    A convolution whose kernel equals its stride is one product per output token; in unrolled order its windows are a
    reshape. Weights keep the convolution's shape, as the public code stores them.
    """

    def __init__(self, config: MaskedAutoencoderConfig) -> None:
        super().__init__()
        self.heads = nn.ModuleList()
        for stage in range(config.q_pool if config.multi_scale_fusion else 0):
            self.heads.append(FusionHead(config, config.widths[stage], config.q_pool - stage))

    def forward(self, stages: list[StageOutput]) -> Tensor:
        """Unrolled tokens of every stage → their sum at the last one's resolution, ``[B, K, M, C]``."""
        fused = stages[-1].tokens
        for head, stage in zip(self.heads, stages, strict=False):
            fused = fused + head(stage.tokens)
        return fused


class FusionHead(nn.Module):
    """One stage's strided convolution over unrolled tokens."""

    def __init__(self, config: MaskedAutoencoderConfig, width: int, poolings: int) -> None:
        super().__init__()
        kernel = tuple(stride**poolings for stride in config.q_stride)
        self.window = TokenOrder(kernel, (config.q_stride,) * poolings)
        convolution = nn.Conv3d if config.is_video else nn.Conv2d
        initial = convolution(width, config.widths[-1], kernel)
        self.weight, self.bias = initial.weight, initial.bias

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, K, M, C]`` → ``[B, K, M / window, C']``."""
        batch, units, count, channels = tokens.shape
        window = self.window.tokens_per_unit()
        windows = tokens.view(batch, units, window, count // window, channels).transpose(2, 3).flatten(3)
        weight = self.window.unroll(self.weight.flatten(2).transpose(1, 2)).flatten(1)  # [C', window·C]
        return functional.linear(windows, weight, self.bias)
