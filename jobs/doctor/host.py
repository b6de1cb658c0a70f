"""What is checked on one host. Each check takes what it needs and returns a finding; none raises for what it finds."""

from __future__ import annotations

import os
import resource
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from jobs.doctor.findings import Finding, found
from jobs.synthetic.motion_videos import render_motion_videos
from pipeline.decode.config import DecodeConfig, DecodeError, FrameView
from pipeline.decode.decoder import IsolatedDecoder
from pipeline.storage.errors import first_line
from pipeline.storage.files import StorageError, delete, join, read_bytes, write_bytes, write_if_absent

GIB = 2**30
FEWEST_FILES = 8192
FULLEST_DISK = 0.9  # Ray refuses new objects at 95 %
PROBE_BYTES = 8 * 2**20
SLOWEST_SECONDS = 2.0
GPU_SECONDS = 10.0


def host_findings(storage: str | None, session: str, object_store_bytes: float) -> list[Finding]:
    """All checks of this host.

    Args:
        storage: prefix for the probe of object storage; None leaves it out.
        session: folder of Ray's session, where objects are spilled.
    """
    host = socket.gethostname()
    checks: list[Callable[[], Finding | Iterator[Finding]]] = [
        lambda: decoder_works(host),
        lambda: disk_has_capacity(host, session),
        lambda: shared_memory_fits(host, object_store_bytes),
        lambda: files_may_be_opened(host),
        lambda: gpus_answer(host),
    ]
    if storage is not None:
        checks.append(lambda: storage_works(host, storage))
    findings = list[Finding]()
    for check in checks:
        outcome = check()
        findings += [outcome] if isinstance(outcome, Finding) else list(outcome)
    return findings


def decoder_works(host: str, config: DecodeConfig | None = None) -> Finding:
    """Render a small video, decode it in an isolated child, compare the frames' shape and that they differ."""
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as folder, IsolatedDecoder(config) as decoder:
            render_motion_videos(folder, 1, seed=0, size=64, num_frames=8, workers=1)
            (video,) = Path(folder).rglob("*.mp4")
            (clip,) = decoder.decode(video, [FrameView(np.arange(8), None, (64, 64))])
        problem = "" if clip.shape == (8, 64, 64, 3) and np.ptp(clip) > 0 else f"frames {clip.shape} are empty"
    except (DecodeError, OSError, ValueError) as error:
        problem = first_line(error)
    detail = problem or f"8 frames in {time.monotonic() - started:.1f} s, the child's start included"
    remedy = "install the packages of constraints.txt again (av, opencv-python-headless); look for a noexec /tmp"
    return found(host, "decoder", bool(problem), detail, remedy)


def disk_has_capacity(host: str, session: str, fullest: float = FULLEST_DISK) -> Finding:
    """The disk of Ray's session takes spilled objects and logs."""
    disk = shutil.disk_usage(session)
    used = 1 - disk.free / disk.total
    detail = f"{session}: {used:.0%} of {disk.total / GIB:.0f} GiB used"
    remedy = f"free space there, or start Ray with --temp-dir on another disk; at most {fullest:.0%} may be used"
    return found(host, "disk of Ray's session", used > fullest, detail, remedy)


def shared_memory_fits(host: str, object_store_bytes: float, folder: str = "/dev/shm") -> Finding:
    """Ray's object store lies in shared memory; where that is smaller, Ray falls back to a slow disk."""
    total = shutil.disk_usage(folder).total
    detail = f"{folder} has {total / GIB:.2f} GiB, Ray's object store {object_store_bytes / GIB:.2f} GiB"
    remedy = (
        "mount a larger one (--shm-size, emptyDir with medium Memory), or start Ray with less --object-store-memory"
    )
    return found(host, "shared memory", total < object_store_bytes, detail, remedy)


def files_may_be_opened(host: str, fewest: int = FEWEST_FILES) -> Finding:
    """Ray opens several files for every worker and every connection."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    remedy = (
        f"raise it to {fewest} or more before `ray start`: `ulimit -n 65536`, LimitNOFILE=, or the container's ulimits"
    )
    return found(host, "open files", soft < fewest, f"at most {soft}", remedy)


def gpus_answer(host: str) -> Finding:
    """GPUs and driver, as the driver's own tool reports them; a host without the tool has none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Finding(host, "GPUs", True, "none")
    query = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=GPU_SECONDS, check=False)
        problem = answer.returncode != 0
        lines = (answer.stdout if not problem else answer.stdout + answer.stderr).strip().splitlines()
    except (OSError, subprocess.TimeoutExpired) as error:
        problem, lines = True, [first_line(error)]
    detail = f"{len(lines)} × {lines[0]}" if lines and not problem else " ".join(lines)
    return found(host, "GPUs", problem, detail, "`nvidia-smi` must list them: look at the driver and the device plugin")


def storage_works(host: str, prefix: str) -> Iterator[Finding]:
    """Write, read, write conditionally and delete a few MiB below a prefix, with latency and rate."""
    uri = join(prefix, f"doctor-{secrets.token_hex(8)}")
    try:
        latency = _seconds(lambda: write_bytes(uri, b"?"))
        rates = [PROBE_BYTES / 1e6 / _seconds(call) for call in (
            lambda: write_bytes(uri, os.urandom(PROBE_BYTES)), lambda: read_bytes(uri))]  # fmt: skip
        detail = f"{1000 * latency:.0f} ms, writes {rates[0]:.0f} MB/s, reads {rates[1]:.0f} MB/s"
        remedy = f"a request must take less than {SLOWEST_SECONDS:g} s: look at the network and the server's load"
        yield found(host, "object storage", latency > SLOWEST_SECONDS, detail, remedy)
        yield conditional_writes_hold(host, f"{uri}-marker")
        delete(uri)
    except StorageError as error:
        yield Finding(host, "object storage", False, error.happened, error.remedy)


def conditional_writes_hold(host: str, uri: str, write: Callable[[str, bytes], bool] = write_if_absent) -> Finding:
    """Completion markers and fencing tokens are written only where nothing is yet."""
    first, second = write(uri, b"1"), write(uri, b"2")
    delete(uri)
    detail = f"first write {'taken' if first else 'refused'}, second {'taken' if second else 'refused'}"
    remedy = "use a server that honours `If-None-Match: *` on PutObject; two runs could take over each other's output"
    return found(host, "conditional writes", not first or second, detail, remedy)


def _seconds(call: Callable[[], object]) -> float:
    started = time.monotonic()
    call()
    return max(time.monotonic() - started, 1e-6)
