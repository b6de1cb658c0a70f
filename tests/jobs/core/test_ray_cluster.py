"""Where a local Ray keeps its sockets, whose paths have at most 107 bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.core.errors import UserError
from jobs.core.ray_cluster import session_folder

LONG = "/scratch/slurm/partition-long-name/job_123456789/step_0"


@pytest.mark.parametrize("temporary", ["/tmp", "/var/tmp", "/local/job.1234567"])
def test_short_temporary_folders_are_left_to_ray(temporary: str) -> None:
    assert session_folder(temporary) is None


@pytest.mark.parametrize("temporary", [LONG, "/local/" + "é" * 20])
def test_a_long_one_is_replaced_by_a_short_folder_of_the_user(temporary: str, tmp_path: Path) -> None:
    folder = session_folder(temporary, short=str(tmp_path))
    assert folder == str(tmp_path / f"ray-{os.getuid()}")
    assert Path(folder).stat().st_mode & 0o777 == 0o700
    assert session_folder(temporary, short=str(tmp_path)) == folder


def test_without_a_short_folder_the_message_has_a_remedy(tmp_path: Path) -> None:
    (tmp_path / f"ray-{os.getuid()}").write_text("a file")
    with pytest.raises(UserError, match=rf"TMPDIR={LONG}: is too long .*set RAY_TMPDIR"):
        session_folder(LONG, short=str(tmp_path))


@pytest.mark.ray
def test_ray_starts_under_a_long_tmpdir(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    code = "import ray\nfrom jobs.core.ray_cluster import connect\nconnect()\nprint(ray.get(ray.put(7)))"
    environment = {**os.environ, "TMPDIR": str(long)}
    environment = {key: value for key, value in environment.items() if key not in ("RAY_TMPDIR", "RAY_ADDRESS")}
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert answer.stdout.strip() == "7", answer.stderr[-2000:]
