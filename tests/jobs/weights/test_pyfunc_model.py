"""What the served model imports: neither Ray nor `jobs`, and no package beyond its requirements."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import pipeline
from jobs.scoring.registered_model import REQUIREMENTS, SCRIPT
from jobs.synthetic.motion_videos import render_motion_videos

# Found by every process of the test, decoding children too, because its folder is on their path.
REFUSE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "jobs"):
            raise ModuleNotFoundError(f"{name} is not installed where models are served")

sys.meta_path.insert(0, Refuse())
"""
LOAD = """
import json, runpy, sys
script = runpy.run_path(sys.argv[1])
with script["IsolatedDecoder"]() as decoder:
    frames = decoder.probe(sys.argv[2]).num_frames
print(json.dumps({"frames": frames, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process without Ray tells after it has run the script and looked into a video."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "sitecustomize.py").write_text(REFUSE)
    (video,) = render_motion_videos(folder, 1, seed=1, size=64, num_frames=8)
    path = os.pathsep.join([str(folder), str(Path(pipeline.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(SCRIPT), str(video.path)],
        env={**os.environ, "PYTHONPATH": path},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_the_served_model_needs_no_ray(loaded: dict[str, Any]) -> None:
    assert loaded["frames"] == 8
    assert not {"ray", "jobs"} & set(loaded["modules"])


def test_its_requirements_name_what_it_imports_itself(loaded: dict[str, Any]) -> None:
    distributions = metadata.packages_distributions()
    modules = set(loaded["modules"])
    ours = {package for module in modules for package in distributions.get(module, ())}
    in_the_child = {"av", "opencv-python-headless", "pillow"}
    assert set(REQUIREMENTS) - in_the_child <= ours
