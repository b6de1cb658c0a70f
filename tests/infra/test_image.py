"""The Dockerfile: its text, and (mark `deploy`) the image that it builds and a job in that image.

buildah builds the file as it is over a Debian root with Python that is made here: no registry is needed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DOCKERFILE = REPOSITORY / "infra" / "Dockerfile"
TEXT = DOCKERFILE.read_text()
BASE = "localhost/python:3.11-stand-in"
REVISION = "0123456789abcdef"
# Where a machine's own pip configuration, and what it names, may lie.
PIP_FILES = ("/etc/ssl/certs", "/etc/pip.conf", "/etc/xdg/pip", "/opt/wheels", "/opt/pypi", "/opt/pypi-more")
PLANTED = "AKIAPLANTEDPLANTED00"


def stages() -> dict[str, str]:
    """The instructions of every stage, by its name."""
    parts = re.split(r"^FROM .* AS (\S+)$", TEXT.replace("\\\n", " "), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_hadolint_finds_nothing() -> None:
    finished = subprocess.run(["hadolint", DOCKERFILE], capture_output=True, text=True, check=False)
    assert finished.stdout == ""
    assert finished.returncode == 0


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_dependencies_come_before_the_sources(target: str) -> None:
    """Sources enter in a stage of their own; what is installed does not depend on it."""
    found = stages()
    assert not re.search(r"hiera_video|pipeline|jobs|--from=wheel", found["builder"] + found[f"{target}-dependencies"])
    copied, installed = found[target].index(f"--from={target}-dependencies"), found[target].index("from=wheel")
    assert copied < installed
    assert "COPY jobs" not in found[target]  # one copy of the code: the installed one


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_images_run_as_a_number_and_carry_their_revision(target: str) -> None:
    text = stages()[target]
    assert re.search(r"^USER 1000:1000\s*$", text, re.MULTILINE)
    for label in ("title", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in text
    assert re.search(r"ENV SOURCE_REVISION=\$SOURCE_REVISION", text)


def test_python_is_that_of_the_pins_and_every_install_keeps_them() -> None:
    assert re.search(r"^ARG BASE=python:3\.11\.\d+-slim-bookworm$", TEXT, re.MULTILINE)
    installs = re.findall(r"pip install .*", TEXT.replace("\\\n", " "))
    assert len(installs) == 7
    assert all("--constraint constraints.txt" in line or "--no-deps /wheels/*.whl" in line for line in installs)


def test_decord_is_left_out_and_postgresql_is_not(tmp_path: Path) -> None:
    """The requirements as the Dockerfile's own line makes them of pyproject.toml."""
    (script,) = re.findall(r"RUN (python -c .*?fi)\n", TEXT, re.DOTALL)
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    for decord in ("", "1"):
        subprocess.run(["bash", "-euc", script], cwd=tmp_path, env={**os.environ, "DECORD": decord}, check=True)
        requirements = (tmp_path / "requirements.txt").read_text()
        assert bool(re.search("^decord", requirements, re.MULTILINE)) == bool(decord)
        assert {"torch", "ray[default,data,train]", "deepspeed", "psycopg[binary]"} <= {
            re.split(r"[<>=;]", line)[0].strip() for line in requirements.splitlines()
        }


def test_only_what_is_built_is_sent() -> None:
    lines = (REPOSITORY / "infra" / "Dockerfile.dockerignore").read_text().splitlines()
    assert lines[0] == "*"
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {word for line in re.findall(r"^COPY (?!--from)(.*)", TEXT, re.MULTILINE) for word in line.split()[:-1]}
    assert sent == copied


@dataclass(frozen=True)
class Built:
    """The image `cpu`, as buildah built it."""

    name: str
    seconds: float

    def inspect(self) -> dict[str, object]:
        finished = buildah("inspect", "--type", "image", self.name)
        found: dict[str, object] = json.loads(finished)
        return found


def buildah(*words: str, seconds: float = 900) -> str:
    finished = subprocess.run(["buildah", *words], capture_output=True, text=True, timeout=seconds, check=False)
    assert finished.returncode == 0, f"buildah {' '.join(words)}\n{finished.stdout[-3000:]}\n{finished.stderr[-3000:]}"
    return finished.stdout


def build(name: str) -> Built:
    """Build the target `cpu` with this machine's pip configuration, which may name an index of its own."""
    started = time.monotonic()
    own = [path for path in PIP_FILES if Path(path).exists()]
    volumes = [word for path in own for word in ("--volume", f"{path}:{path}:ro")]
    settings = [word for key, value in os.environ.items() if key.startswith("PIP_") and key != "PIP_CONSTRAINT"
                for word in ("--env", f"{key}={value}")]  # fmt: skip
    arguments = {"BASE": BASE, "TORCH_CPU_INDEX": "", "SOURCE_REVISION": REVISION, "VERSION": "0.1.0"}
    buildah(
        "bud", "--isolation", "chroot", "--pull-never", "--layers", "--target", "cpu",
        *[word for item in arguments.items() for word in ("--build-arg", "=".join(item))],
        *volumes, *settings, "--ignorefile", f"{DOCKERFILE}.dockerignore", "--file", str(DOCKERFILE), "--tag", name,
        str(REPOSITORY), seconds=2400,
    )  # fmt: skip
    return Built(name, time.monotonic() - started)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The image over a Debian root that stands in for the official Python image."""
    missing = [program for program in ("buildah", "mmdebstrap") if shutil.which(program) is None]
    if missing:
        pytest.fail(f"{', '.join(missing)}: not here; apt-get install --no-install-recommends buildah mmdebstrap")
    root = Path(os.environ.get("DEBIAN_ROOT", tmp_path_factory.mktemp("root") / "root.tar"))
    if not root.exists():
        subprocess.run(
            ["mmdebstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates", "bookworm", root],
            check=True, capture_output=True, timeout=900,
        )  # fmt: skip
    container = buildah("from", "scratch").strip()
    buildah("add", container, str(root), "/")
    buildah("commit", "--rm", container, BASE)
    return build("localhost/hiera-video:test-cpu")


@pytest.mark.deploy
@pytest.mark.timeout(3600)
def test_the_image_has_its_labels_and_its_number(built: Built) -> None:
    configuration = json.dumps(built.inspect())
    assert f'"org.opencontainers.image.revision": "{REVISION}"' in configuration
    assert '"User": "1000:1000"' in configuration
    assert PLANTED not in configuration


@pytest.mark.deploy
@pytest.mark.timeout(1800)
def test_a_job_runs_in_the_image_as_a_number_in_a_folder_that_cannot_be_written(built: Built, tmp_path: Path) -> None:
    script = """
    set -eu
    test "$(id -u)" = 1000
    ! touch here 2>/dev/null
    bash -lc 'command -v ray' | grep -q /opt/venv/bin/ray
    python -c "import psycopg, importlib.util as u; assert u.find_spec('decord') is None"
    test -z "$(find / -xdev -name '*.py' -path '*jobs/pretrain.py' -not -path '/opt/venv/*' 2>/dev/null)"
    export HOME=/tmp
    python - <<'END'
from pathlib import Path
from jobs.synthetic.motion_videos import render_motion_videos
render_motion_videos(Path("/tmp/videos"), 8, seed=0, size=64, num_frames=16, workers=1)
END
    python -m jobs.prepare source=/tmp/videos output=/tmp/set workers=0
    python -m jobs.inspect data=/tmp/set
    """
    container = buildah("from", "--pull-never", built.name).strip()
    try:
        printed = buildah(
            "run", "--isolation", "chroot", "--user", "1000:1000", "--workingdir", "/opt/venv", container, "--",
            "bash", "-c", script,
        )  # fmt: skip
    finally:
        buildah("rm", container)
    assert "clips" in printed


@pytest.mark.deploy
@pytest.mark.timeout(1800)
def test_a_changed_source_rebuilds_little(built: Built) -> None:
    def layers(name: str) -> list[str]:
        found: list[str] = json.loads(buildah("inspect", "--type", "image", name))["OCIv1"]["rootfs"]["diff_ids"]
        return found

    before = layers(built.name)
    file = REPOSITORY / "jobs" / "recipes" / "prepare" / "zzz_rebuild.yaml"
    try:
        file.write_text("val_share: 0.1\n")
        again = build("localhost/hiera-video:test-again")
    finally:
        file.unlink(missing_ok=True)
    after = layers(again.name)
    changed = len([layer for layer in after if layer not in before])
    print(f"built in {built.seconds:.0f} s, again in {again.seconds:.0f} s, {changed} of {len(after)} layers")
    assert changed <= 2
    assert again.seconds < 60  # 20 s on an idle machine
