"""A registered classifier as MLflow runs it: this script is stored with the model and runs where the model is loaded.

It sees `hiera_video` and `pipeline`, which are stored beside it, never `jobs`. Legend: B views, T frames, C classes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow.models
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from mlflow.pyfunc import PythonModel, PythonModelContext

from hiera_video.inference import Probabilities
from hiera_video.models.hiera import Hiera
from hiera_video.weights.checkpoint_files import load_model, read_metadata
from pipeline.decode.config import DecodeConfig, DecodeError, ImageView, TimeView, VideoInfo
from pipeline.decode.decoder import IsolatedDecoder
from pipeline.media import Media
from pipeline.sampling import center_crop
from pipeline.schema import OK
from pipeline.storage.fetch import fetched
from pipeline.storage.files import absolute
from pipeline.tagging.windows import WindowGrid, window_times

BATCH = 16
DECODE_SECONDS = 30.0
NOMINAL_FPS = 25.0  # of a single frame without a rate, as in tagging


class VideoClassifier(PythonModel):  # type: ignore[misc]  # MLflow has no types
    """Scores arrays, and videos by windows of time as `jobs.tag` does."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load weights, class names and the windows' length and hop."""
        weights = Path(context.artifacts["weights"])
        model = load_model(weights)
        assert isinstance(model, Hiera)  # checked when it was registered
        self._score = Probabilities(model).eval()
        self._config = model.config
        self._media: Media = "video" if model.config.is_video else "image"
        self.classes: list[str] = json.loads(read_metadata(weights)["classes"])
        settings = context.model_config
        self._grid = WindowGrid(float(settings["window_seconds"]), float(settings["hop_seconds"]))

    # `ndarray`, though a path is taken too: of any other hint MLflow tries to make a schema, beside the registered one.
    def predict(
        self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Scores of each class, a column each.

        Args:
            model_input: uint8 frames ``[B, T, H, W, 3]``, of images ``[B, H, W, 3]`` → a row per view; or the path or
                URI of one video or image → a row per window (an image has one), with ``start_seconds``,
                ``end_seconds``, and in ``status`` and ``message`` why a window has no scores.
        """
        if isinstance(model_input, str | os.PathLike):
            return self._video(absolute(str(model_input)))
        return pd.DataFrame(self._probabilities(model_input), columns=self.classes)

    @torch.inference_mode()
    def _probabilities(self, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        parts = [
            self._score(torch.from_numpy(np.require(frames[start : start + BATCH], np.uint8, ["C", "W"]))).numpy()
            for start in range(0, len(frames), BATCH)
        ]
        return np.concatenate(parts) if parts else np.empty((0, len(self.classes)), np.float32)

    def _video(self, uri: str) -> pd.DataFrame:
        columns = ["start_seconds", "end_seconds", "status", "message", *self.classes]
        return pd.DataFrame(list(self._windows(uri)), columns=columns)

    def _windows(self, uri: str) -> Iterator[dict[str, Any]]:
        """A row per window; one without times for a video that cannot be opened."""
        limits = DecodeConfig(deadline_seconds=DECODE_SECONDS)
        try:
            with fetched(uri, limits.max_bytes) as path, IsolatedDecoder(limits, self._media) as decoder:
                info = decoder.probe(path)
                if self._media == "image":
                    info = replace(info, num_frames=1)
                seconds = info.duration_seconds or info.num_frames / NOMINAL_FPS
                for index in range(int(self._grid.count(seconds))):
                    yield self._window(decoder, path, info, self._grid.span(index, seconds), seconds / info.num_frames)
        except DecodeError as error:
            yield {"status": error.reason, "message": error.message}

    def _window(
        self, decoder: IsolatedDecoder, path: Path, info: VideoInfo, span: tuple[float, float], frame_seconds: float
    ) -> dict[str, Any]:
        row = {"start_seconds": span[0], "end_seconds": span[1]}
        try:
            (clip,) = decoder.decode(path, [self._view(info, span, frame_seconds)])
        except DecodeError as error:
            return {**row, "status": error.reason, "message": error.message}
        scores = dict(zip(self.classes, self._probabilities(clip[None])[0], strict=True))
        return {**row, "status": OK, "message": "", **scores}

    def _view(self, info: VideoInfo, span: tuple[float, float], frame_seconds: float) -> TimeView | ImageView:
        *frames, height, width = self._config.input_size
        if not frames:
            resized = int(height / self._config.test_crop_share)
            return ImageView(None, (height, width), self._config.interpolation, resized)
        times = window_times(span, frame_seconds, frames[0])
        return TimeView(times, center_crop(info.height, info.width), (height, width))


mlflow.models.set_model(VideoClassifier())
