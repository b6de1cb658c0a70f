"""DeepSpeed's partitioned optimizer state as plain named tensors: free of world size, ZeRO stage and pickle.

ZeRO 1 and 2 keep, for each parameter group, one flat buffer of all its parameters, cut into one slice a rank.
ZeRO 3 cuts every parameter into one slice a rank and keeps a flat buffer of its own slices for each sub-group.
Both are gathered to ``{parameter name}.{state key}`` tensors in the parameter's own shape, and laid out again
for whatever world size and stage resumes. Master weights need no separate treatment: the model is float32
(lower precision comes from autocast), so its parameters are the master weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hiera_video.flat_optimizer import STEP, FlatOptimizer, Rates, Span

GATHERED_ELEMENTS = 2**26  # on a device at a time
STEP_KEY = STEP  # AdamW counts steps a buffer; all counts are equal, so one is kept


@dataclass(frozen=True)
class Member:
    """One parameter's position in a flat buffer."""

    name: str
    shape: torch.Size
    offset: int
    numel: int


@dataclass(frozen=True)
class FlatBuffer:
    """The tensor that the optimizer updates on this rank, and what lies in it.

    ``interleaved``: ZeRO 3's layout, in which every member is cut into one slice a rank; otherwise the buffer as a
    whole is cut.
    """

    tensor: Tensor
    members: list[Member]
    interleaved: bool


def gather_weights(engine: Any, *, keep: bool = True) -> dict[str, Tensor]:
    """Full float32 weights of the step's model by name, on the CPU.

    All ranks must call it; the others than those that ``keep`` them get nothing.
    """
    parameters = dict(engine.module.model.named_parameters())
    partitioned = parameters if engine.zero_optimization_stage() == 3 else {}
    weights = {}
    for name, value in engine.module.model.state_dict().items():
        whole = _whole(partitioned[name]) if name in partitioned else value
        if keep:
            weights[name] = whole.detach().cpu().clone()
    return weights


def _whole(parameter: Any) -> Tensor:
    """A parameter of ZeRO 3 from the ranks' shares; DeepSpeed's own gathering may have gone through bfloat16."""
    shares = [torch.empty_like(parameter.ds_tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(shares, parameter.ds_tensor.detach())
    return torch.cat(shares)[: parameter.ds_numel].view(parameter.ds_shape)


def step_was_sound(engine: Any) -> Tensor:
    """Whether the optimizer took every step and left this rank's share of the weights finite: a bool scalar.

    A gradient that is no number spoils the weights; with ZeRO 3 DeepSpeed skips its step silently.
    """
    finite: Tensor = torch.nn.utils.get_total_norm(_own_weights(engine), math.inf).isfinite()
    return finite & bool(engine.skipped_steps == 0)


def _own_weights(engine: Any) -> list[Tensor]:
    """What this rank's optimizer updates. Flat from ZeRO 1 on: a tenth as many tensors as the model has."""
    if engine.zero_optimization_stage() < 3:
        return [tensor.detach() for group in inner_optimizer(engine).param_groups for tensor in group["params"]]
    shares = [own_share(parameter, dist.get_rank()) for parameter in engine.module.model.parameters()]
    return [share for share in shares if share.numel()]


def own_share(parameter: Any, rank: int) -> Tensor:
    """A rank's elements of a parameter of ZeRO 3, without the padding, which is uninitialised memory."""
    share: Tensor = parameter.ds_tensor.detach()
    return share[: max(0, parameter.ds_numel - rank * share.numel())]


def checkpoint_bytes(engine: Any) -> int:
    """Size of weights and optimizer state as they are gathered, in float32."""
    parameters: list[Any] = list(engine.module.model.parameters())
    weights = sum(int(getattr(parameter, "ds_numel", parameter.numel())) for parameter in parameters)
    learning = sum(member.numel for buffer in _buffers(engine) for member in buffer.members)
    return 4 * (weights + cast(FlatOptimizer, inner_optimizer(engine)).moments * learning)


def gather_optimizer_state(engine: Any, *, keep: bool = True) -> dict[str, Tensor]:
    """Full optimizer state by ``{parameter name}.{state key}``, on the CPU; ``keep`` as in `gather_weights`."""
    state: dict[str, Tensor] = {}
    for buffer in _buffers(engine):
        for key, value in inner_optimizer(engine).state.get(buffer.tensor, {}).items():
            if key == STEP_KEY:
                # A copy: it is written in the background, while the optimizer counts up in place.
                state[STEP_KEY] = torch.as_tensor(value, dtype=torch.float32).cpu().clone()
            elif value is not None:
                state |= {f"{member.name}.{key}": full for member, full in _gather(buffer, value, keep)}
    return state if keep else {}


def scatter_optimizer_state(engine: Any, state: Mapping[str, Tensor]) -> None:
    """Lay gathered state out for this engine's world size and ZeRO stage.

    Raises:
        ValueError: the state lacks a parameter of this model.
    """
    keys = {name.rpartition(".")[2] for name in state if name != STEP_KEY}
    for buffer in _buffers(engine):
        slot: dict[str, Any] = {key: _scatter(buffer, key, state) for key in sorted(keys)}
        if STEP_KEY in state:
            slot[STEP_KEY] = state[STEP_KEY].clone()
        if slot:
            inner_optimizer(engine).state[buffer.tensor] = slot


def inner_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside DeepSpeed's wrapper (there is none at stage 0)."""
    inner = engine.optimizer
    while not isinstance(inner, torch.optim.Optimizer):
        inner = inner.optimizer
    return inner


def spans_of_rates(engine: Any, rates: Mapping[nn.Parameter, Rates]) -> dict[Tensor, list[Span]]:
    """What lies where in this rank's share of each flat buffer; nothing where the optimizer has the parameters."""
    names = {name: rates[parameter] for name, parameter in engine.module.model.named_parameters() if parameter in rates}
    return {
        buffer.tensor: [Span(*_own_part(buffer, member), names[member.name]) for member in buffer.members]
        for buffer in _buffers(engine)
        if _is_slice(buffer)
    }


def _own_part(buffer: FlatBuffer, member: Member) -> tuple[int, int]:
    """Where this rank's elements of a parameter begin in its slice of the buffer, and how many there are."""
    if buffer.interleaved:
        return member.offset, -(-member.numel // dist.get_world_size())
    size = buffer.tensor.numel()
    first = member.offset - dist.get_rank() * size
    start, end = max(0, first), min(size, first + member.numel)
    return start, max(0, end - start)


def _buffers(engine: Any) -> Iterator[FlatBuffer]:
    names = {parameter: name for name, parameter in engine.module.model.named_parameters()}
    stage = engine.zero_optimization_stage()
    if stage:
        yield from (_sub_group_buffers if stage == 3 else _group_buffers)(engine.optimizer, names)
        return
    for group in inner_optimizer(engine).param_groups:
        for parameter in group["params"]:
            member = Member(names[parameter], parameter.shape, 0, parameter.numel())
            yield FlatBuffer(parameter, [member], interleaved=False)


def _group_buffers(zero: Any, names: Mapping[nn.Parameter, str]) -> Iterator[FlatBuffer]:
    for index, parameters in enumerate(zero.round_robin_bit16_groups):
        placed = zip(parameters, zero.round_robin_bit16_offsets[index], strict=True)
        members = [Member(names[part], part.shape, int(offset), part.numel()) for part, offset in placed]
        yield FlatBuffer(zero.single_partition_of_fp32_groups[index], members, interleaved=False)


def _sub_group_buffers(zero: Any, names: Mapping[nn.Parameter, str]) -> Iterator[FlatBuffer]:
    for index, parameters in enumerate(zero.fp16_groups):
        members, offset = [], 0
        for parameter in parameters:
            members.append(Member(names[parameter], parameter.ds_shape, offset, parameter.ds_numel))
            offset += parameter.partition_numel()
        yield FlatBuffer(zero.fp32_partitioned_groups_flat[index], members, interleaved=True)


def _gather(buffer: FlatBuffer, value: Tensor, keep: bool) -> Iterator[tuple[Member, Tensor]]:
    if not _is_slice(buffer):
        if keep:
            yield buffer.members[0], value.detach().cpu().clone()
        return
    gathered = _all_slices(value, keep)
    for member in buffer.members if keep else ():
        yield member, _extract(buffer, gathered, member).clone()


def _all_slices(value: Tensor, keep: bool) -> Tensor:
    """All ranks' slices on the CPU, ``[ranks, elements of one slice]``; empty where they are not kept.

    Piece by piece: a slice is a rank's share of the whole model's state, and devices have no capacity for all of it.
    """
    ranks = dist.get_world_size()
    pieces = torch.split(value.detach(), max(1, GATHERED_ELEMENTS // ranks))
    gathered = torch.empty((ranks, value.numel()) if keep else (0,), dtype=value.dtype)
    first = 0
    for piece in pieces:
        parts = torch.empty((ranks, piece.numel()), dtype=value.dtype, device=value.device)
        dist.all_gather(list(parts.unbind()), piece.contiguous())
        if keep:
            gathered[:, first : first + piece.numel()] = parts.cpu()
        first += piece.numel()
    return gathered


def _is_slice(buffer: FlatBuffer) -> bool:
    """Whether the optimizer updates slices; at stage 0 it updates the parameters themselves."""
    return buffer.interleaved or not isinstance(buffer.tensor, nn.Parameter)


def _extract(buffer: FlatBuffer, gathered: Tensor, member: Member) -> Tensor:
    # gathered: [ranks, elements of one slice]
    if not buffer.interleaved:
        return gathered.reshape(-1)[member.offset : member.offset + member.numel].view(member.shape)
    local = -(-member.numel // gathered.shape[0])
    return gathered[:, member.offset : member.offset + local].reshape(-1)[: member.numel].view(member.shape)


def _scatter(buffer: FlatBuffer, key: str, state: Mapping[str, Tensor]) -> Tensor:
    if not _is_slice(buffer):
        return _entry(state, buffer.members[0], key).to(buffer.tensor.device, copy=True)
    ranks = dist.get_world_size()
    full = torch.zeros(ranks, buffer.tensor.numel(), dtype=buffer.tensor.dtype)
    for member in buffer.members:
        value = _entry(state, member, key).reshape(-1)
        if buffer.interleaved:
            local = -(-member.numel // ranks)
            padded = torch.nn.functional.pad(value, (0, ranks * local - member.numel))
            full[:, member.offset : member.offset + local] = padded.view(ranks, local)
        else:
            full.view(-1)[member.offset : member.offset + member.numel] = value
    return full[dist.get_rank()].to(buffer.tensor.device, copy=True)


def _entry(state: Mapping[str, Tensor], member: Member, key: str) -> Tensor:
    try:
        return state[f"{member.name}.{key}"]
    except KeyError as error:
        raise ValueError(
            f"optimizer state: {member.name}.{key} is missing; the checkpoint was written for another model"
        ) from error
