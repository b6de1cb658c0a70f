"""PyTorch files of strangers, looked at before PyTorch reads them: its reader runs no code, but believes every size."""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

MOST_PICKLE_BYTES = 64 * 2**20  # names and shapes; the tensors' bytes lie beside it
MOST_PICKLES = 5  # the format of PyTorch before 1.6: mark, version, machine, content, keys
# Of what `weights_only` may call these make many bytes of few, alone or one within another. No tensor needs them.
GROWING = ("bytearray", "encode")
ADVICE = "convert it to .safetensors where you trust it"


def refuse_growing(path: str | Path) -> None:
    """Compare what a file claims to hold with the file, without unpickling anything.

    Raises:
        ValueError: a compressed member, as `torch.save` writes none; a pickle that makes bytes by their number.
        Others of `pickletools` and `zipfile`: it is damaged.
    """
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            _refuse_calls(_opcodes_before_tensors(file))
        return
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise ValueError(f"its {member.filename[:60]!r} is compressed, as no file of torch.save is; {ADVICE}")
            if member.filename.endswith(".pkl"):
                if member.file_size > MOST_PICKLE_BYTES:
                    raise ValueError(f"its pickle has {member.file_size} bytes, more than names and shapes; {ADVICE}")
                _refuse_calls(pickletools.genops(archive.read(member)))


def is_in_the_file(tensor: Tensor) -> bool:
    """Whether every value of a tensor was read: a stride of 0, a sparse or a meta tensor claims any shape."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


Opcodes = Iterator[tuple[pickletools.OpcodeInfo, object, int | None]]


def _opcodes_before_tensors(file: BinaryIO) -> Opcodes:
    for _ in range(MOST_PICKLES):
        yield from pickletools.genops(file)


def _refuse_calls(opcodes: Opcodes) -> None:
    for opcode, argument, _ in opcodes:
        if opcode.name == "GLOBAL" and str(argument).rpartition(" ")[2] in GROWING:
            raise ValueError(f"its pickle calls {str(argument)[:60]!r}, which no tensor needs; {ADVICE}")
