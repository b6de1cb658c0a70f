"""Which source tree runs, as tags of its runs. Actors import it with the claim of an output: it loads no MLflow."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

COMMIT_TAG = "mlflow.source.git.commit"
CHANGED_FILES_TAG = "git_changed_files"
REVISION_VARIABLE = "SOURCE_REVISION"


def source_tags() -> dict[str, str]:
    """The commit of the source tree that runs, and how many files differ from it.

    Where there is no git checkout, as in an image or a submitted job, the environment's `SOURCE_REVISION` names the
    commit.
    """
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        revision = os.environ.get(REVISION_VARIABLE)
        return {COMMIT_TAG: revision} if revision else {}
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return {COMMIT_TAG: commit, CHANGED_FILES_TAG: str(len((changed or "").splitlines()))}


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
