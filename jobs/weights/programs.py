"""Classifiers as files that need neither this project nor the model's code: which there are, and writing one."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hiera_video.models.hiera import Hiera
from jobs.weights.onnx_export import export_onnx, refuse_without_library
from jobs.weights.torch_export import export_program
from pipeline.storage.files import write_bytes

ONNX = ".onnx"
PROGRAMS = {".pt2": export_program, ONNX: export_onnx}
"""By their ending."""


def refuse_what_cannot_be_written(output: str) -> None:
    """`UserError` where a package is missing that the file needs."""
    if output.endswith(ONNX):
        refuse_without_library(output)


def write_program(output: str, model: Hiera, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Write the program that the ending of ``output`` names; returns facts for the report.

    Raises:
        RuntimeError: its scores are not the model's; nothing was written.
    """
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / Path(output).name
        difference = PROGRAMS[program.suffix](model, program, metadata)
        files = sorted(Path(folder).iterdir(), key=lambda file: file == program)  # what lies beside it first
        for file in files:
            write_bytes(output.removesuffix(program.name) + file.name, file.read_bytes())
        megabytes = sum(file.stat().st_size for file in files) / 1e6
    return {
        "file": output,
        "part": "classifier from frames to scores",
        "megabytes": megabytes,
        "largest difference from the model": difference,
    }
