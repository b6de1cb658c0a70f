"""A classifier as an ONNX file, checked by ONNX Runtime against the model that it was made of.

`onnx`, `onnxscript` and `onnxruntime` are optional (`pip install 'hiera-video-system[onnx]'`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from hiera_video.models.hiera import Hiera
from jobs.core.errors import UserError
from jobs.weights.torch_export import checked, traced

try:
    import onnxruntime
except ImportError:
    onnxruntime = None

INPUT, OUTPUT = "frames", "scores"
TOLERANCE = 1e-4
"""Of a score, between 0 and 1: another library adds in another order."""
EXPORTERS = ("onnx", "onnxscript")
"""What `torch.onnx` imports once it exports."""
ERRORS_ALONE = 3


def refuse_without_library(output: str) -> None:
    """`UserError` where a package is not installed that writes or checks ONNX files."""
    missing = [name for name in EXPORTERS if importlib.util.find_spec(name) is None]
    if missing or onnxruntime is None:
        names = ", ".join([*missing, *(["onnxruntime"] if onnxruntime is None else [])])
        raise UserError(
            f"output={output}: an ONNX file needs {names}; `pip install 'hiera-video-system[onnx]'`, or export to .pt2"
        )


@torch.no_grad()
def export_onnx(model: Hiera, path: Path, metadata: Mapping[str, str]) -> float:
    """Write a graph from `frames` to `scores` as `export_program` does; weights above 1.5 GiB lie beside it.

    Args:
        metadata: entries of the file's metadata.

    Returns:
        the largest difference of a score from the model's, on random frames.

    Raises:
        RuntimeError: it is not within 1e-4; the file is not fit for use.
    """
    program = torch.onnx.export(traced(model), input_names=[INPUT], output_names=[OUTPUT], verbose=False)
    assert program is not None  # as of every exported program
    shape = program.model.graph.inputs[0].shape
    assert shape is not None  # as of every tensor that was traced
    program.rename_axes({str(shape[0]): "batch"})
    program.model.metadata_props.update(metadata)
    program.save(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ALONE
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def scores(frames: Tensor) -> Tensor:
        (found,) = session.run([OUTPUT], {INPUT: frames.numpy()})
        return torch.from_numpy(found)

    return checked(model, scores, TOLERANCE)
