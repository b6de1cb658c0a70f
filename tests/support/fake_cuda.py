"""A CUDA device without one: tensors on it have shapes and types but no values, and waiting for it is an error.

Tensors on the host are real, so that seeds, draws and plans run as they are. Whatever touches the device runs on fake
tensors, which refuse to be mixed with those of the host.

PyTorch built for CPUs alone has no backward pass on CUDA, not even of fake tensors: autograd wants the accelerator's
streams. `STAND_IN` is a device without streams, for which nothing else is different.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

CUDA, STAND_IN = torch.device("cuda", 0), torch.device("lazy", 0)
TYPES, META_TYPE, LAST_TYPE = {"cuda": 1, "lazy": 17}, 14, 20  # of `c10::DeviceType`
# Their result's value or size is known to the device alone.
READS = {
    torch.ops.aten._local_scalar_dense,
    torch.ops.aten.is_nonzero,
    torch.ops.aten.equal,
    torch.ops.aten.nonzero,
    torch.ops.aten.masked_select,
    torch.ops.aten._unique2,
    torch.ops.aten.unique_consecutive,
    torch.ops.aten.unique_dim,
    torch.ops.aten.bincount,
}
# In place, and PyTorch does not say what they do to shapes: nothing.
WITHOUT_SHAPES = {torch.ops.aten._fused_sgd_}
INDEXED = {torch.ops.aten.index, torch.ops.aten.index_put_, torch.ops.aten.index_put}
MASKS = (torch.bool, torch.uint8)
COPIES = {torch.ops.aten._to_copy, torch.ops.aten.copy_, torch.ops.aten.copy}


class WaitsForDeviceError(RuntimeError):
    """The host would wait until the device has done all that it was given."""


class FakeCuda(TorchDispatchMode):
    """Operations on the device run on fake tensors, all others as ever."""

    def __init__(self, device: torch.device = CUDA) -> None:
        super().__init__()
        self.device = device
        self._fake = FakeTensorMode()
        self._strict = False
        self.operations: set[Any] = set()
        """What ran on the device."""

    def __enter__(self) -> FakeCuda:
        _ensure_device_guard(TYPES[self.device.type])
        self._fake.__enter__()  # below this mode, which decides what reaches it
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._fake.__exit__(*error)

    def place(self, module: nn.Module) -> nn.Module:
        """The module with its parameters and buffers on the device."""
        return module.to(self.device)

    def tensor(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor on the device."""
        return torch.empty(*shape, dtype=dtype, device=self.device)

    @contextmanager
    def no_waits(self) -> Iterator[None]:
        """Waiting for the device is an error here."""
        self._strict = True
        try:
            yield
        finally:
            self._strict = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        target = kwargs.get("device")
        onto_device = target is not None and torch.device(target).type == self.device.type
        if not onto_device and not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            with _disable_current_modes():
                return func(*args, **kwargs)
        if self._strict:
            _refuse_waits(func, args, kwargs, tensors)
        self.operations.add(func)
        if func.overloadpacket in WITHOUT_SHAPES:
            assert {tensor.device for tensor in tensors} == {self.device}, f"{func}: mixes devices"
            return None
        args, kwargs = tree_map(self._faked, (args, kwargs))
        return func(*args, **kwargs)

    def _faked(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, FakeTensor):
            return value
        return self._fake.from_tensor(value)


def _ensure_device_guard(number: int) -> None:
    """Autograd asks a device's guard for its stream, and a build of PyTorch without the device has none.

    Builds with CUDA but without a GPU get one that does nothing from `FakeTensorMode` itself. Here the device takes
    that of the meta device, which does nothing either, in the registry of `c10/core/impl/DeviceGuardImplInterface.h`.
    """
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    registry = (ctypes.c_void_p * (LAST_TYPE + 1)).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    registry[number] = registry[number] or registry[META_TYPE]


def _refuse_waits(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]) -> None:
    packet = func.overloadpacket
    if packet in READS:
        raise WaitsForDeviceError(f"{func}: reads a value or a size from the device")
    if packet in INDEXED and any(index is not None and index.dtype in MASKS for index in args[1]):
        raise WaitsForDeviceError(f"{func}: a mask as an index; how many places it has is known to the device")
    if packet in COPIES and _crosses(func, args, kwargs, tensors):
        non_blocking = kwargs.get("non_blocking", len(args) > 2 and args[2])
        into_host = _ends_on(func, args, kwargs).type == "cpu"
        if into_host or not non_blocking:
            raise WaitsForDeviceError(f"{func}: a copy {'from' if into_host else 'to'} the device that is waited for")


def _crosses(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]) -> bool:
    source = args[1] if func.overloadpacket in (torch.ops.aten.copy_, torch.ops.aten.copy) else args[0]
    return bool(source.device.type != _ends_on(func, args, kwargs).type)


def _ends_on(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device:
    if func.overloadpacket is torch.ops.aten._to_copy and kwargs.get("device") is not None:
        return torch.device(kwargs["device"])
    device: torch.device = args[0].device
    return device


@contextmanager
def autocast_for_cuda() -> Iterator[None]:
    """`torch.autocast("cuda")` works without CUDA, which it would only warn about."""
    with (
        patch.object(torch.cuda.amp.common, "amp_definitely_not_available", return_value=False),
        patch.object(torch.cuda, "is_bf16_supported", return_value=True),
    ):
        yield
