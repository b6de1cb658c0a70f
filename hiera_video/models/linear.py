"""A linear layer that multiplies float32 matrices with oneDNN on CPUs.

PyTorch multiplies float32 matrices on a CPU with MKL, which leaves a tenth of an AVX-512 core unused on processors of
other makers; oneDNN, which PyTorch carries for other types, does not. Measured on two cores of an EPYC with
avx512_bf16: 213 against 193 GFLOP/s, and 4 % of a whole pretraining step when used throughout. Equal up to
rounding.

Shapes: I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_has_onednn = torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_onednn_linear: Callable[..., Tensor] | None = torch.ops.mkldnn._linear_pointwise if _has_onednn else None


class Linear(nn.Linear):
    """`torch.nn.Linear`, by oneDNN where that is faster: float32 on a CPU, outside of autocast and captured graphs.

    Another library rounds differently, and a max-pooling behind it may then pass a near tie's gradient to the other
    token. So where gradients are wanted, a layer that `feeds_pooling` stays with PyTorch's own product.
    """

    feeds_pooling = True

    def forward(self, inputs: Tensor, outputs: slice = slice(None)) -> Tensor:
        """``[..., I]`` → ``[..., O]``, or a slice of the outputs."""
        whole = outputs == slice(None)
        weight: Tensor = self.weight if whole else self.weight[outputs]
        bias: Tensor = self.bias if whole else self.bias[outputs]
        if not _uses_onednn(inputs) or (self.feeds_pooling and torch.is_grad_enabled()):
            return functional.linear(inputs, weight, bias)
        result: Tensor = _OneDnnLinear.apply(inputs, weight, bias)  # type: ignore[no-untyped-call]
        return result


def _uses_onednn(inputs: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and inputs.device.type == "cpu"
        and inputs.dtype == torch.float32
        and _onednn_linear is not None
        and not torch.is_autocast_enabled("cpu")
    )


def _product(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``inputs @ weight.T + bias``; weight may be a transposed view."""
    assert _onednn_linear is not None
    return _onednn_linear(inputs, weight, bias, "none", [], "")


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return _product(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        wants_inputs, wants_weight, wants_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            _product(gradient, weight.t()) if wants_inputs else None,
            rows.t() @ inputs.flatten(0, -2) if wants_weight else None,  # MKL is the faster one here
            rows.sum(dim=0) if wants_bias else None,
        )
