"""`make audit`: known faults of the pinned packages, a bill of materials, linters of scripts, image and manifests.

Every check ends as `ok`, `found` (what it found is printed), or `not reached`: a tool that is not installed, or a
database that does not answer. Exit code 1 if anything was found; with ``--strict`` also for what was not reached.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD = REPOSITORY / "build"
TOOLS = BUILD / "audit" / "bin"
"""Where `make audit` installs pip-audit and cyclonedx-bom, which nothing else needs."""
SECONDS = 600
KUBERNETES = "1.33"
OK, FOUND, NOT_REACHED = "ok", "found", "not reached"
# How tools say that a host did not answer.
UNREACHABLE = (
    "connection",
    "max retries",
    "timed out",
    "name resolution",
    "service unavailable",
    "proxy",
    "404",
    "403",
)


@dataclass(frozen=True)
class Finding:
    """How a check ended."""

    check: str
    outcome: str
    detail: str


def main() -> None:
    """Run the checks, print what they found, exit."""
    parser = argparse.ArgumentParser(prog="make audit", description="Known faults, bill of materials, linters.")
    parser.add_argument("--strict", action="store_true", help="what was not reached counts as found")
    strict = parser.parse_args().strict
    BUILD.mkdir(exist_ok=True)
    findings = [check() for check in CHECKS]
    sys.stdout.writelines(f"{finding.outcome:12} {finding.check}: {finding.detail}\n" for finding in findings)
    bad = {FOUND, NOT_REACHED} if strict else {FOUND}
    sys.exit(any(finding.outcome in bad for finding in findings))


def known_faults(requirements: Path = REPOSITORY / "constraints.txt") -> Finding:
    """Of every pinned package, by pip-audit, from PyPI's database."""
    name = "known faults of pinned packages (pip-audit)"
    done = ran("pip-audit", "--requirement", requirements, "--no-deps", "--disable-pip", "--progress-spinner", "off")
    if isinstance(done, str):
        return Finding(name, NOT_REACHED, done)
    text = done.stdout + done.stderr
    if done.returncode == 0:
        return Finding(name, OK, last_line(text))
    if "Vulnerability" not in text and (reason := unreachable(text)):
        return Finding(name, NOT_REACHED, reason)
    return Finding(name, FOUND, text.strip())


def bill_of_materials(python: Path = Path(sys.executable)) -> Finding:
    """The installed packages with versions and licences, as CycloneDX in ``build/sbom.json``."""
    name, target = "bill of materials (cyclonedx-bom)", BUILD / "sbom.json"
    done = ran("cyclonedx-py", "environment", python, "--output-format", "JSON", "--output-file", target)
    if isinstance(done, str):
        return Finding(name, NOT_REACHED, done)
    if done.returncode:
        return Finding(name, FOUND, last_line(done.stderr))
    return Finding(name, OK, str(target.relative_to(REPOSITORY)))


def scripts() -> Finding:
    """Shell scripts, by shellcheck."""
    return linted("shell scripts (shellcheck)", "shellcheck", list(shell_scripts()))


def image() -> Finding:
    """The image's build file, by hadolint."""
    return linted("image (hadolint)", "hadolint", [REPOSITORY / "infra" / "Dockerfile"])


def manifests() -> Finding:
    """Kinds of Kubernetes itself, as they are before Kustomize, by kubernetes-validate."""
    name = f"manifests (kubernetes-validate, {KUBERNETES})"
    files = [path for path in (REPOSITORY / "infra" / "kubernetes").rglob("*.yaml") if is_plain_manifest(path)]
    return linted(name, "kubernetes-validate", files, "--strict", "--kubernetes-version", KUBERNETES)


def linted(name: str, tool: str, files: Sequence[Path], *options: str) -> Finding:
    """A linter's verdict over files."""
    done = ran(tool, *options, *files)
    if isinstance(done, str):
        return Finding(name, NOT_REACHED, done)
    if done.returncode:
        return Finding(name, FOUND, (done.stdout + done.stderr).strip())
    return Finding(name, OK, f"{len(files)} file{'s' * (len(files) != 1)}")


def shell_scripts() -> Iterator[Path]:
    """Tracked files that a shell runs."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for path in (REPOSITORY / name for name in listed.stdout.split("\0") if name):
        if path.suffix in (".sh", ".sbatch") and path.exists():
            yield path


def is_plain_manifest(path: Path) -> bool:
    """Whether all documents are of kinds that Kubernetes knows without Ray's operator or Kustomize."""
    documents = [document for document in yaml.safe_load_all(path.read_text()) if document]
    if not all(isinstance(document, dict) for document in documents):  # a JSON patch
        return False
    groups = [str(document.get("apiVersion", "")) for document in documents]
    own = ("ray.io/", "kustomize.config.k8s.io/", "monitoring.coreos.com/")
    complete = all({"kind", "metadata"} <= document.keys() for document in documents)
    return bool(documents) and complete and not any(group.startswith(own) for group in groups) and not is_patch(path)


def is_patch(path: Path) -> bool:
    """Whether a file is a part of a manifest that Kustomize merges into another one."""
    described = path.with_name("kustomization.yaml")
    if not described.exists():
        return False
    resources = yaml.safe_load(described.read_text()).get("resources", [])
    return path.name not in resources


def ran(tool: str, *arguments: object) -> subprocess.CompletedProcess[str] | str:
    """A tool run to its end, or why it could not be."""
    found = shutil.which(tool, path=str(TOOLS)) or shutil.which(tool)
    if found is None:
        return f"{tool} is not installed"
    try:
        return subprocess.run(
            [found, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=SECONDS, cwd=REPOSITORY
        )
    except subprocess.TimeoutExpired:
        return f"{tool} did not end within {SECONDS} s"


def unreachable(text: str) -> str:
    """The line by which a tool says that a host did not answer; empty if it says no such thing."""
    lines = [line for line in text.splitlines() if any(sign in line.lower() for sign in UNREACHABLE)]
    return lines[-1].strip()[:300] if lines else ""


def last_line(text: str) -> str:
    """The last line that says anything."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


CHECKS: tuple[Callable[[], Finding], ...] = (known_faults, bill_of_materials, scripts, image, manifests)

if __name__ == "__main__":
    main()
