"""AdamW and SGD in a single parameter group, with learning rates and weight decay of their own for its parts.

Layer decay makes about a hundred groups of Large's parameters. An optimizer that shards its state (DeepSpeed's ZeRO)
takes each of them through a flat buffer, a gradient norm and collective operations of its own: most of the host's time
in a step. Here all parameters are one group. They are updated by torch's own kernels (fused on CUDA), once for each
kind of `Rates`; where the group is a flat buffer, `lay_out` says which of its elements have which.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

STEP = "step"  # the state's key of the steps that it took
EPSILON = 1e-8  # AdamW's, PyTorch's default
CLIP_EPSILON = 1e-6  # as DeepSpeed and PyTorch have it


class Rates(NamedTuple):
    """What parameters of one layer and kind share."""

    scale: float
    """Factor on the step's learning rate."""
    weight_decay: float


class Span(NamedTuple):
    """A run of elements of a flat buffer that share their rates."""

    start: int
    length: int
    rates: Rates


class Piece(NamedTuple):
    """A span's elements, as views."""

    weights: Tensor
    gradient: Tensor
    state: Mapping[str, Tensor]


class FlatOptimizer(torch.optim.Optimizer):
    """An optimizer of one group.

    Args:
        groups: `params` with their `lr_scale` and `weight_decay`, as `parameter_groups` gives them; parameters stay in
            this order, so that a flat buffer has few spans.
    """

    moments: ClassVar[int]
    """Values of state for each element."""

    def __init__(self, groups: Sequence[Mapping[str, Any]], learning_rate: float) -> None:
        self.rates = {
            parameter: Rates(group["lr_scale"], group["weight_decay"])
            for group in groups
            for parameter in group["params"]
        }
        self._spans: dict[Tensor, list[Span]] = {}
        self._clip_norm = 0.0
        super().__init__([{"params": list(self.rates)}], {"lr": learning_rate})

    def lay_out(self, spans: Mapping[Tensor, Iterable[Span]], clip_norm: float = 0.0) -> None:
        """Say what lies where in this rank's share of flat buffers, which DeepSpeed puts in the parameters' place.

        Args:
            clip_norm: clip gradients to this norm over all ranks' shares; 0: not here.
        """
        self._spans, self._clip_norm = {buffer: _joined(parts) for buffer, parts in spans.items()}, clip_norm

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient; without a wait for the device."""
        (group,) = self.param_groups
        buffers = [buffer for buffer in group["params"] if buffer.grad is not None]
        if self._clip_norm:
            _clip([buffer.grad for buffer in buffers], self._clip_norm)
        pieces: dict[Rates, list[Piece]] = defaultdict(list)
        for buffer in buffers:
            if not self.state[buffer]:
                self.state[buffer] = self._new_state(buffer)
            for span in self._spans_of(buffer):
                pieces[span.rates].append(_piece(buffer, self.state[buffer], span))
        for rates, alike in pieces.items():
            self._update(alike, group["lr"] * rates.scale, rates.weight_decay)
        for buffer in buffers:
            if (steps := self.state[buffer].get(STEP)) is not None:
                steps += 1

    def _spans_of(self, buffer: Tensor) -> Sequence[Span]:
        """None where a rank's share is nothing but padding; all of it where it is a parameter."""
        if buffer in self._spans:
            return self._spans[buffer]
        return [Span(0, buffer.numel(), self.rates[buffer])]

    @abstractmethod
    def _new_state(self, buffer: Tensor) -> dict[str, Tensor]:
        """The state before the first step."""

    @abstractmethod
    def _update(self, pieces: Sequence[Piece], learning_rate: float, weight_decay: float) -> None:
        """One step of pieces with the same rates."""


class FlatAdamW(FlatOptimizer):
    """AdamW, the arithmetic of `torch.optim.AdamW`."""

    moments = 2

    def __init__(
        self, groups: Sequence[Mapping[str, Any]], learning_rate: float, betas: tuple[float, float] = (0.9, 0.999)
    ) -> None:
        super().__init__(groups, learning_rate)
        self._betas = betas

    def _new_state(self, buffer: Tensor) -> dict[str, Tensor]:
        moments = {key: torch.zeros_like(buffer, requires_grad=False) for key in ("exp_avg", "exp_avg_sq")}
        # On the host: reading it waits for nothing.
        return {STEP: torch.zeros((), device="cpu"), **moments}

    def _update(self, pieces: Sequence[Piece], learning_rate: float, weight_decay: float) -> None:
        weights, taken = pieces[0].weights, pieces[0].state[STEP]
        # A count of its own for every piece, since the kernel counts up. All are equal, and filling needs no copy.
        counts = torch.full((len(pieces),), float(taken), device=weights.device if weights.is_cuda else taken.device)
        adamw(
            [piece.weights for piece in pieces],
            [piece.gradient for piece in pieces],
            [piece.state["exp_avg"] for piece in pieces],
            [piece.state["exp_avg_sq"] for piece in pieces],
            [],
            list(counts.unbind()),
            foreach=False,
            fused=weights.is_cuda,
            amsgrad=False,
            beta1=self._betas[0],
            beta2=self._betas[1],
            lr=learning_rate,
            weight_decay=weight_decay,
            eps=EPSILON,
            maximize=False,
        )


class FlatSGD(FlatOptimizer):
    """SGD with Nesterov's momentum, the arithmetic of `torch.optim.SGD`."""

    moments = 1

    def __init__(self, groups: Sequence[Mapping[str, Any]], learning_rate: float, momentum: float) -> None:
        super().__init__(groups, learning_rate)
        self._momentum = momentum

    def _new_state(self, buffer: Tensor) -> dict[str, Tensor]:
        # From zeros the first average is the gradient, as torch begins.
        return {"momentum_buffer": torch.zeros_like(buffer, requires_grad=False)}

    def _update(self, pieces: Sequence[Piece], learning_rate: float, weight_decay: float) -> None:
        sgd(
            [piece.weights for piece in pieces],
            [piece.gradient for piece in pieces],
            [piece.state["momentum_buffer"] for piece in pieces],
            foreach=False,
            fused=pieces[0].weights.is_cuda,
            weight_decay=weight_decay,
            momentum=self._momentum,
            lr=learning_rate,
            dampening=0.0,
            nesterov=True,
            maximize=False,
        )


def _clip(gradients: Sequence[Tensor], highest: float) -> None:
    """Scale the gradients of all ranks' shares to a norm of at most ``highest``; a norm that is no number spoils all.

    DeepSpeed's own clipping takes a norm of every parameter and reads the result on the host, three times.
    """
    squared = torch.nn.utils.get_total_norm(list(gradients)).square()
    dist.all_reduce(squared)
    factor = ((squared.sqrt() + CLIP_EPSILON) / highest).clamp(min=1.0)
    for gradient in gradients:
        gradient.mul_(1.0 / factor)


def _piece(buffer: Tensor, state: Mapping[str, Tensor], span: Span) -> Piece:
    assert buffer.grad is not None
    cut_state = {key: value if value.ndim == 0 else _cut(value, span) for key, value in state.items()}
    return Piece(_cut(buffer, span), _cut(buffer.grad, span), cut_state)


def _cut(tensor: Tensor, span: Span) -> Tensor:
    return tensor if span.length == tensor.numel() else tensor.view(-1).narrow(0, span.start, span.length)


def _joined(spans: Iterable[Span]) -> list[Span]:
    """Spans with neighbours of the same rates joined; empty ones are left out."""
    joined: list[Span] = []
    for span in sorted(span for span in spans if span.length):
        last = joined[-1] if joined else None
        if last is not None and last.rates == span.rates and last.start + last.length == span.start:
            joined[-1] = last._replace(length=last.length + span.length)
        else:
            joined.append(span)
    return joined
