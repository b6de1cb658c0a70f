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
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray.util.annotations import RayDeprecationWarning

from jobs.core.cli import echo
from jobs.core.errors import StopRequestedError, UserError
from pipeline.storage.errors import StorageError
from pipeline.storage.node_cache import private_folder

# Two train workers must leave CPUs to the data tasks, also on a two-core machine (logical CPUs only).
LOCAL_CPUS = max(4, os.cpu_count() or 1)
LOOPBACK = "127.0.0.1"
SOCKET_PATH_BYTES = 107
# /session_2026-11-25_17-59-07_123456_4194304/sockets/plasma_store.123
SOCKET_BYTES_IN_SESSION = 68
TOO_LONG = f"is too long for the sockets of Ray, whose paths have at most {SOCKET_PATH_BYTES} bytes"

# What every process of the job gets. The backend's own log lines stay in Ray's log files.
JOB_ENVIRONMENT = {"RAY_TRAIN_ENABLE_PRINT_PATCH": "0", "RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_COLOR_PREFIX": "0",
                   "PYTHONWARNINGS": "ignore"}  # fmt: skip


# The driver alone talks to MLflow. Workers run on videos of others and need neither its address nor its password.
TRACKING_PREFIX = "MLFLOW_"
TRACKING_KEYS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


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
        folder = session_folder(*temporary_folder())
        with _without_tracking(), _on_loopback() as ports:
            ray.init(address="local", num_cpus=LOCAL_CPUS, include_dashboard=False, _temp_dir=folder, **ports, **quiet)
        return
    # A variable of a job cannot be taken back, but emptied; also where `ray job submit` has set it for the whole job.
    os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] = "1"
    hidden = dict.fromkeys({*TRACKING_KEYS, *_tracking_variables()}, "")
    try:
        ray.init(address=address, runtime_env={"env_vars": {**JOB_ENVIRONMENT, **hidden}}, **quiet)
    except ConnectionError as error:
        raise UserError(
            f"RAY_ADDRESS={address}: must be the address of a running Ray cluster; start one with `ray start --head`, "
            "or unset RAY_ADDRESS to run on this machine"
        ) from error


def _tracking_variables() -> list[str]:
    return [name for name in os.environ if name.startswith(TRACKING_PREFIX)]


@contextmanager
def _without_tracking() -> Iterator[None]:
    """Around the start of Ray's processes, whose environment all workers inherit."""
    kept = {name: os.environ.pop(name) for name in _tracking_variables()}
    try:
        yield
    finally:
        os.environ |= kept


def temporary_folder() -> tuple[str, str]:
    """The variable that decides Ray's temporary folder, and the folder."""
    given = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), None)
    return (given, os.environ[given]) if given else ("TMPDIR", tempfile.gettempdir())


@contextmanager
def _on_loopback() -> Iterator[dict[str, Any]]:
    """Arguments with which a Ray that starts within listens on the loopback alone: nobody else needs to reach it.

    Ray replaces 127.0.0.1 by an address that others can reach, except where it knows no clusters (Windows, macOS).
    """
    knows_clusters = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield {"_node_ip_address": LOOPBACK}
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = knows_clusters


def session_folder(variable: str, temporary: str, short: str = "/tmp") -> str | None:
    """Where a local Ray keeps its session; None for its own choice, ``ray`` below the temporary folder.

    Ray's sockets lie in the session, and the path of a socket has at most 107 bytes. Slurm and macOS set a TMPDIR that
    is longer than what is left; the session is then in a short folder of this user's, with a warning.

    Args:
        variable: the one of the environment that names ``temporary``.

    Raises:
        UserError: the short folder cannot be used either.
    """
    most = SOCKET_PATH_BYTES - SOCKET_BYTES_IN_SESSION - len("/ray")
    if len(os.fsencode(temporary.rstrip("/"))) <= most:
        return None
    mine = os.path.join(short, f"hiera-ray-{os.getuid()}")
    try:
        private_folder(Path(mine))
    except StorageError as error:
        raise UserError(
            f"{variable}={temporary}: {TOO_LONG}, and {mine} cannot be used instead ({error.happened}); set "
            "RAY_TMPDIR to another short folder"
        ) from error
    folder = os.path.join(mine, "s")  # Ray lets all users write to the folder that it is given
    echo(
        f"{variable}={temporary}: {TOO_LONG}; Ray uses {folder}; set RAY_TMPDIR to a folder of {most} bytes or less",
        warning=True,
    )
    return folder


def has_gpus() -> bool:
    """Whether the cluster offers GPUs."""
    return bool(ray.cluster_resources().get("GPU", 0) > 0)


def node_addresses() -> set[str]:
    """IP addresses of the cluster's living nodes."""
    return {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
