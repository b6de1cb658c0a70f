"""Arithmetic for CPUs: what the model computes anyway, by the library and in the order that suits a CPU.

The model uses `Linear`, `attend` and `run_in_unit_groups` as if they were the plain formulas, which they are on other
devices and in compiled or exported graphs. `takes` is the one switch. All shortcuts equal the formulas up to rounding;
`tests/benchmarks/bench_model_notes.md` has the measurements.

Shapes: B batch, U mask units, M tokens of a unit, C channels; G batch or windows, H heads, R = G·H, N queries, K keys,
D channels of a head; I inputs and O outputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

CACHED_SCORES_BYTES = 32 * 2**20
"""Above this, glibc hands out fresh pages for a buffer each time, and the scores leave the cache."""
UNITS_IN_CACHE = 32
"""Mask units whose hidden layers fit a core's cache together."""

Shortcut = Literal["onednn products", "three-step attention", "units in cache"]

_has_onednn = torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_onednn_linear: Callable[..., Tensor] | None = torch.ops.mkldnn._linear_pointwise if _has_onednn else None


def takes(shortcut: Shortcut, tensor: Tensor) -> bool:
    """The switch: whether to compute on this tensor by a shortcut, for its device, its type and the current mode."""
    if tensor.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if shortcut == "onednn products":
        return tensor.dtype == torch.float32 and _onednn_linear is not None and not torch.is_autocast_enabled("cpu")
    if shortcut == "three-step attention":
        # With AMX the fused kernel multiplies in tiles, and there is nothing to gain.
        fused_is_slow = torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()
        return tensor.dtype == torch.bfloat16 and fused_is_slow
    return not torch.is_grad_enabled()


class Linear(nn.Linear):
    """`torch.nn.Linear`; on a CPU float32 matrices are multiplied by oneDNN.

    PyTorch itself takes MKL, which leaves a tenth of an AVX-512 core unused on processors of other makers: 193 against
    213 GFLOP/s on two cores of an EPYC.

    Another library rounds differently, and a max-pooling after it may then pass a near tie's gradient to the other
    token. So where gradients are wanted, a layer that `feeds_pooling` stays with PyTorch's own product.
    """

    feeds_pooling = True

    def forward(self, inputs: Tensor) -> Tensor:
        """``[..., I]`` → ``[..., O]``."""
        if not takes("onednn products", inputs) or (self.feeds_pooling and torch.is_grad_enabled()):
            return functional.linear(inputs, self.weight, self.bias)
        result: Tensor = _OneDnnLinear.apply(inputs, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return result


def train_by_onednn(module: nn.Module) -> None:
    """Declare that no max-pooling follows the linear layers of a module."""
    for part in module.modules():
        if isinstance(part, Linear):
            part.feeds_pooling = False


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention: ``[G, H, N, D]``, ``[G, H, K, D]`` twice → ``[G, H, N, D]``.

    PyTorch's fused CPU kernel gains nothing from bfloat16: its arithmetic halves, yet it recomputes every score and
    exponential in the backward pass. Scores, softmax and product as three oneDNN calls, with the probabilities kept,
    take 145 ms against 247 ms a layer (2 × 16 heads, 1568 tokens, forward and backward, two cores). The price is
    memory, two bytes a probability (activation checkpointing frees them), and scores rounded before the softmax.
    """
    if not takes("three-step attention", query):
        return functional.scaled_dot_product_attention(query, key, value)
    query_rows, key_rows, value_rows = (part.flatten(0, 1) for part in (query, key, value))  # [R, N or K, D]
    query_rows = query_rows * query.shape[-1] ** -0.5
    scores_bytes = query_rows.shape[0] * query.shape[-2] * key.shape[-2] * query.element_size()
    if scores_bytes > CACHED_SCORES_BYTES:
        mixed: Tensor = _AttentionByHead.apply(query_rows, key_rows, value_rows)  # type: ignore[no-untyped-call]
    else:
        mixed = torch.softmax(query_rows @ key_rows.mT, dim=-1) @ value_rows
    return mixed.view(query.shape)


def run_in_unit_groups(run: Callable[[Tensor], list[Tensor]], tokens: Tensor) -> list[Tensor]:
    """``run(tokens)`` for a function that treats the mask units of ``[B, U, M, C]`` independently.

    On a CPU without gradients it runs on a few units at a time: their hidden layers stay in the cache, which saves a
    tenth of inference.
    """
    if not takes("units in cache", tokens):
        return run(tokens)
    batch, units = tokens.shape[:2]
    groups = torch.split(tokens.flatten(0, 1).unsqueeze(1), UNITS_IN_CACHE)  # [32, 1, M, C] each
    return [torch.cat(parts).view(batch, units, *parts[0].shape[2:]) for parts in zip(*map(run, groups), strict=True)]


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return _onednn_product(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        wants_inputs, wants_weight, wants_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            _onednn_product(gradient, weight.t()) if wants_inputs else None,
            rows.t() @ inputs.flatten(0, -2) if wants_weight else None,  # here MKL is the faster one
            rows.sum(dim=0) if wants_bias else None,
        )


def _onednn_product(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``inputs @ weight.T + bias``; weight may be a transposed view."""
    assert _onednn_linear is not None
    return _onednn_linear(inputs, weight, bias, "none", [], "")


class _AttentionByHead(torch.autograd.Function):
    """Scaled queries ``[R, N, D]``, keys and values ``[R, K, D]`` → ``[R, N, D]``, one head of one sample at a time.

    All heads share one buffer of scores, which so stays in the cache.
    """

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
