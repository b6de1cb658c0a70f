"""Joining the Ray cluster that a job was submitted to, or starting one on this machine."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.annotations import RayDeprecationWarning

from jobs.core.errors import StopRequestedError, UserError

# Two train workers must leave CPUs to the data tasks, also on a two-core machine (logical CPUs only).
LOCAL_CPUS = max(4, os.cpu_count() or 1)
SOCKET_PATH_BYTES = 107
# /session_2026-11-25_17-59-07_123456_4194304/sockets/plasma_store.123
SOCKET_BYTES_IN_SESSION = 68


# What every process of the job gets. The backend's own log lines stay in Ray's log files.
JOB_ENVIRONMENT = {"RAY_TRAIN_ENABLE_PRINT_PATCH": "0", "RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_COLOR_PREFIX": "0",
                   "PYTHONWARNINGS": "ignore"}  # fmt: skip


def connect() -> None:
    """Join the cluster of ``RAY_ADDRESS`` (set inside a submitted job), else start a local Ray.

    Workers' output stays in Ray's log files: commands print what matters themselves, and failures reach the driver.

    Raises:
        UserError: ``RAY_ADDRESS`` names a cluster that does not answer.
    """
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", **JOB_ENVIRONMENT}
    # Ray Data has no other setting yet for the restart limits of its actors.
    warnings.filterwarnings("ignore", category=RayDeprecationWarning)
    # It logs only that a token is used because one is configured.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    if not ray.is_initialized():
        with _own_sigterm_handler():
            _start(os.environ.get("RAY_ADDRESS"))
    logging.getLogger("ray.data").setLevel(logging.ERROR)


@contextmanager
def _own_sigterm_handler() -> Iterator[None]:
    """Restore the command's SIGTERM handler, which `ray.init` replaces by one that exits.

    Raises:
        StopRequestedError: SIGTERM arrived while Ray was starting.
    """
    own = signal.getsignal(signal.SIGTERM)
    if not callable(own) or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        yield
    except SystemExit as error:
        raise StopRequestedError(
            "stopped while Ray was starting; finished work is kept, run the same command to resume"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, own)


def _start(address: str | None) -> None:
    quiet: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    if address is None:
        folder = session_folder(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or tempfile.gettempdir())
        ray.init(address="local", num_cpus=LOCAL_CPUS, include_dashboard=False, _temp_dir=folder, **quiet)
        return
    try:
        ray.init(address=address, runtime_env={"env_vars": JOB_ENVIRONMENT}, **quiet)
    except ConnectionError as error:
        raise UserError(
            f"RAY_ADDRESS={address}: must be the address of a running Ray cluster; start one with `ray start --head`, "
            "or unset RAY_ADDRESS to run on this machine"
        ) from error


def session_folder(temporary: str, short: str = "/tmp") -> str | None:
    """Where a local Ray keeps its session; None for its own choice, ``ray`` below the temporary folder.

    Ray's sockets lie in the session, and the path of a socket has at most 107 bytes. Slurm and macOS set a TMPDIR that
    is longer than what is left; the session is then in a short folder of this user's.

    Raises:
        UserError: the short folder cannot be used either.
    """
    if len(os.fsencode(os.path.join(temporary, "ray"))) + SOCKET_BYTES_IN_SESSION <= SOCKET_PATH_BYTES:
        return None
    folder = os.path.join(short, f"ray-{os.getuid()}")
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        usable = os.stat(folder).st_uid == os.getuid() and os.access(folder, os.W_OK)
    except OSError:
        usable = False
    if not usable:
        raise UserError(
            f"TMPDIR={temporary}: is too long for the sockets of Ray (107 bytes), and {folder} cannot be used instead; "
            "set RAY_TMPDIR to another short folder"
        )
    return folder


def has_gpus() -> bool:
    """Whether the cluster offers GPUs."""
    return bool(ray.cluster_resources().get("GPU", 0) > 0)
