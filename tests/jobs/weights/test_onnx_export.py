"""ONNX files: the model's scores for any number of views, what its input is, and nothing left where they differ."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from hiera_video.inference import Probabilities
from hiera_video.models.hiera import Hiera
from hiera_video.models.presets import create_model
from hiera_video.weights.checkpoint_files import save_model
from jobs.core.errors import UserError
from jobs.export import ExportConfig, run
from jobs.weights import onnx_export

FACTS = {
    "classes": '["a", "b", "c"]',
    "sampling_of_frames": '{"sampling": "dense", "frame_stride": 4}',
    "recipe": "tracking: {uri: 'http://me:hunter2@h'}",
}


def saved(preset: str, folder: Path) -> tuple[Hiera, ExportConfig]:
    torch.manual_seed(0)
    model = create_model(preset, num_classes=3, head_init_scale=10.0).eval()
    assert isinstance(model, Hiera)
    save_model(folder / "model.safetensors", model, FACTS)
    return model, ExportConfig(init=str(folder / "model.safetensors"), output=str(folder / "out" / "classifier.onnx"))


@pytest.mark.parametrize("preset", ["hiera_test_8x64", "hiera_test_96"])
def test_scores_are_the_models_for_any_batch(preset: str, tmp_path: Path) -> None:
    model, config = saved(preset, tmp_path)
    report = run(config)
    assert report["largest difference from the model"] <= onnx_export.TOLERANCE
    session = onnxruntime.InferenceSession(config.output, providers=["CPUExecutionProvider"])
    (given,), (found,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("frames", "tensor(uint8)", ["batch", *model.config.input_size, 3])
    assert (found.name, found.shape) == ("scores", ["batch", 3])
    for views in (1, 4):
        frames = np.random.default_rng(views).integers(0, 256, (views, *model.config.input_size, 3), np.uint8)
        with torch.no_grad():
            expected = Probabilities(model)(torch.from_numpy(frames)).numpy()
        np.testing.assert_allclose(session.run(None, {"frames": frames})[0], expected, atol=1e-5)
    assert expected.max() > 0.4  # not flat, so that a difference shows
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == ["a", "b", "c"]
    assert "hunter2" not in str(metadata)
    described = json.loads(metadata["preprocessing"])
    assert (described["size"], described["mean"]) == ([*model.config.input_size[-2:]], [*model.config.pixel_mean])
    if model.config.is_video:
        assert (described["frames"], described["frame_stride"]) == (8, 4)
    else:
        assert (described["interpolation"], described["crop_share"]) == ("bicubic", 0.875)


def test_a_file_that_differs_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, config = saved("hiera_test_96", tmp_path)
    monkeypatch.setattr(onnx_export, "TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match=r"differs from the model by .*, more than -1"):
        run(config)
    assert not Path(config.output).parent.exists()


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_without_a_package_the_remedy_is_named_first(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing == "onnxruntime":
        monkeypatch.setattr(onnx_export, "onnxruntime", None)
    else:
        monkeypatch.setattr(onnx_export, "EXPORTERS", (f"{missing}_that_is_not_installed",))
    with pytest.raises(
        UserError, match=rf"output=/o/x\.onnx: an ONNX file needs {missing}.*hiera-video-system\[onnx\]"
    ):
        run(ExportConfig(init="/does/not/exist", output="/o/x.onnx"))
