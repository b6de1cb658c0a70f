"""Transformer blocks over unrolled mask units; the encoder and the decoder are built from the same ones.

Shapes: B batch, U mask units (visible ones in pretraining), M tokens of a unit, C channels, H heads, D channels a head.

Source: Hiera (arXiv 2306.00989) §3, with pooling of queries and skip as in MViTv2 (arXiv 2112.01526).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hiera_video.models.cpu import Linear, attend

NORM_EPSILON = 1e-6


def pool_tokens(tokens: Tensor, stride: int) -> Tensor:
    """Max-pooling in unrolled order: ``[B, U, M, C]`` → ``[B, U, M / stride, C]``."""
    if stride == 1:
        return tokens
    batch, units, count, channels = tokens.shape
    return tokens.reshape(batch, units, stride, count // stride, channels).amax(dim=2)


class MaskUnitAttention(nn.Module):
    """Attention within mask units or over all tokens, with the queries max-pooled where a stage begins.

    Both kinds are 4-dimensional calls of `scaled_dot_product_attention`, windows folded into the batch: with five
    dimensions it falls back to the unfused kernel, which made up most of the public code's pretraining step on a CPU.
    ``pool`` tokens are merged into one query; 1 keeps the resolution.
    """

    def __init__(self, dim: int, dim_out: int, num_heads: int, pool: int = 1, within_units: bool = False) -> None:
        super().__init__()
        self.num_heads, self.pool, self.within_units = num_heads, pool, within_units
        self.qkv = Linear(dim, 3 * dim_out)
        self.proj = Linear(dim_out, dim_out)

    def forward(self, tokens: Tensor, first_query: int = 0) -> Tensor:
        """``[B, U, M, C]`` → ``[B, U, M / pool, C']``, or only for the tokens of M from ``first_query`` on."""
        query, key, value = self.qkv(tokens).chunk(3, dim=-1)
        query = pool_tokens(query[:, :, first_query:], self.pool)
        mixed = attend(self._split_heads(query), self._split_heads(key), self._split_heads(value))
        merged: Tensor = self.proj(mixed.transpose(1, 2).reshape(query.shape))
        return merged

    def _split_heads(self, tokens: Tensor) -> Tensor:
        """``[B, U, M, H·D]`` → ``[B·U, H, M, D]`` within units, ``[B, H, U·M, D]`` globally."""
        batch, units, _, channels = tokens.shape
        groups = batch * units if self.within_units else batch
        return tokens.reshape(groups, -1, self.num_heads, channels // self.num_heads).transpose(1, 2)


class Mlp(nn.Module):
    """Two linear maps with a GELU between."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[..., C]`` → ``[..., C]``."""
        mixed: Tensor = self.fc2(functional.gelu(self.fc1(tokens)))
        return mixed


class HieraBlock(nn.Module):
    """Pre-norm attention and MLP, each with a residual; where channels grow, the residual is projected and pooled."""

    def __init__(
        self, dim: int, dim_out: int, num_heads: int, mlp_ratio: float, pool: int = 1, within_units: bool = False
    ) -> None:
        super().__init__()
        self.pool = pool
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPSILON)
        self.attn = MaskUnitAttention(dim, dim_out, num_heads, pool, within_units)
        self.norm2 = nn.LayerNorm(dim_out, eps=NORM_EPSILON)
        self.mlp = Mlp(dim_out, int(dim_out * mlp_ratio))
        self.proj = Linear(dim, dim_out) if dim != dim_out else None

    def forward(self, tokens: Tensor, branch_scales: Tensor | None = None, first_output: int = 0) -> Tensor:
        """``[B, U, M, C]`` → ``[B, U, M / pool, C']``.

        Args:
            branch_scales: stochastic depth, ``[2, B]``.
            first_output: compute only the tokens of M from this one on; all others still serve as keys and values.
        """
        normed = self.norm1(tokens)
        if self.proj is not None:
            tokens = pool_tokens(self.proj(normed), self.pool)
        tokens = tokens[:, :, first_output:] + _scale(self.attn(normed, first_output), branch_scales, 0)
        return tokens + _scale(self.mlp(self.norm2(tokens)), branch_scales, 1)


def _scale(branch: Tensor, scales: Tensor | None, index: int) -> Tensor:
    return branch if scales is None else branch * scales[index].to(branch.dtype).view(-1, 1, 1, 1)


def init_weights(model: nn.Module, init_matrix: Callable[[Tensor], object], bias: float) -> None:
    """Initialise the matrices of linear layers, and set the biases of these and of LayerNorms."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            init_matrix(module.weight)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, nn.Linear | nn.LayerNorm):
            nn.init.constant_(module.bias, bias)


def run_block(block: Callable[..., Any], *inputs: Tensor | int | None, recompute: bool) -> Tensor:
    """Run a block; with ``recompute`` its activations are freed and computed again in the backward pass."""
    if recompute and torch.is_grad_enabled():
        block = partial(torch.utils.checkpoint.checkpoint, block, use_reentrant=False, preserve_rng_state=False)
    output: Tensor = block(*inputs)
    return output
