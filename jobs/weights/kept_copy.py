"""The copy of registered weights under an output, which all workers can read. Actors import it: it loads no MLflow."""

from __future__ import annotations

import hashlib
from pathlib import Path

from jobs.core.init_source import DIGEST_CHARACTERS
from pipeline.storage.files import exists, join, write_bytes

KEPT = "initial"  # folder under an output


def keep_under(output: str, file: str) -> str:
    """Copy a local weights file to where all workers can read it; returns the copy's URI."""
    with Path(file).open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()[:DIGEST_CHARACTERS]
    uri = join(output, KEPT, f"{digest}.safetensors")
    if not exists(uri):
        write_bytes(uri, Path(file).read_bytes())
    return uri
