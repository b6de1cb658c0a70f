"""Attention over 4-dimensional tensors: the fused kernel, and for bfloat16 on CPUs three plain steps.

PyTorch's fused CPU kernel gains nothing from bfloat16: with avx512_bf16 its arithmetic halves, yet it takes as long as
in float32, because it recomputes every score and exponential. Scores, softmax and product as three oneDNN calls, one
head at a time so that the scores stay in cache, with the probabilities kept for the backward pass, take 145 ms against
247 ms a layer (2 × 16 heads, 1568 tokens, forward and backward, two cores). The price is memory, two bytes a
probability (activation checkpointing frees them), and scores rounded to bfloat16 before the softmax.

Shapes: G batch or windows, H heads, N queries, M keys, D channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

CACHED_SCORES_BYTES = 32 * 2**20
"""Above this, glibc hands out fresh pages for a buffer each time, and the scores leave the cache."""


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention: ``[G, H, N, D]``, ``[G, H, M, D]`` twice → ``[G, H, N, D]``."""
    if not _prefers_plain_steps(query):
        return functional.scaled_dot_product_attention(query, key, value)
    rows = [part.reshape(-1, part.shape[-2], part.shape[-1]) for part in (query, key, value)]
    rows[0] = rows[0] * query.shape[-1] ** -0.5
    scores_bytes = rows[0].shape[0] * query.shape[-2] * key.shape[-2] * query.element_size()
    if scores_bytes > CACHED_SCORES_BYTES:
        mixed: Tensor = _AttentionByHead.apply(*rows)  # type: ignore[no-untyped-call]
    else:
        mixed = torch.bmm(torch.softmax(torch.bmm(rows[0], rows[1].mT), dim=-1), rows[2])
    return mixed.view(query.shape)


def _prefers_plain_steps(query: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and query.device.type == "cpu"
        and query.dtype == torch.bfloat16
        and torch.cpu._is_avx512_bf16_supported()
        and not torch.cpu._is_amx_tile_supported()  # there the fused kernel multiplies in tiles
    )


class _AttentionByHead(torch.autograd.Function):
    """Scaled queries ``[R, N, D]``, keys and values ``[R, M, D]`` → ``[R, N, D]``, R heads of all samples."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        transposed_key = key.mT.contiguous()
        scores = query.new_empty(query.shape[1], key.shape[1])
        mixed = torch.empty_like(query)
        kept = []
        for head in range(query.shape[0]):
            torch.mm(query[head], transposed_key[head], out=scores)
            probabilities = torch._softmax(scores, -1, False)
            torch.mm(probabilities, value[head], out=mixed[head])
            if any(ctx.needs_input_grad):
                kept.append(probabilities)
        ctx.save_for_backward(query, key, value, *kept)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, *kept = ctx.saved_tensors
        transposed_value, transposed_query = value.mT.contiguous(), query.mT.contiguous()
        transposed_gradient = gradient.mT.contiguous()
        to_probabilities = query.new_empty(query.shape[1], key.shape[1])
        to_scores = torch.empty_like(to_probabilities)
        to_query, to_key, to_value = torch.empty_like(query), torch.empty_like(key.mT), torch.empty_like(value.mT)
        for head, probabilities in enumerate(kept):
            torch.mm(gradient[head], transposed_value[head], out=to_probabilities)
            torch._softmax_backward_data(to_probabilities, probabilities, -1, query.dtype, grad_input=to_scores)
            torch.mm(transposed_gradient[head], probabilities, out=to_value[head])
            torch.mm(to_scores, key[head], out=to_query[head])
            torch.mm(transposed_query[head], to_scores, out=to_key[head])
        return to_query, to_key.mT, to_value.mT
