"""Functions on several ranks of a process group on this machine, as processes of their own."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing import spawn


def on_ranks(world: int, function: Callable[..., None], *arguments: Any) -> None:
    """``function(*arguments)`` on every rank, with gloo; what it raises is raised here."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(_run, (world, port, function, arguments), nprocs=world, daemon=True)


def _run(rank: int, world: int, port: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "DS_ACCELERATOR": "cpu",
    }
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        function(*arguments)
        dist.barrier()
    finally:
        dist.destroy_process_group()
