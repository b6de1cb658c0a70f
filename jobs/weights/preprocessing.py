"""What a classifier's input is, as exported files describe it to programs that do not have this project."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hiera_video.models.config import HieraConfig

PREPROCESSING = "preprocessing"
"""Entry of an exported file's metadata."""
PILLOW_RESAMPLE = {"bilinear": 2, "bicubic": 3}


def preprocessing(config: HieraConfig, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Size, normalisation and choice of frames of a view.

    Args:
        sampling: how frames were chosen in training (`sampling`, `frame_stride`), as far as the weights say.
    """
    *frames, height, width = config.input_size
    of_images = {"interpolation": config.interpolation, "crop_share": config.test_crop_share}
    of_videos = {"frames": frames[0] if frames else 1, **sampling}
    return {
        "media": "video" if config.is_video else "image",
        **(of_videos if config.is_video else of_images),
        "size": [height, width],
        "mean": list(config.pixel_mean),
        "std": list(config.pixel_std),
    }


def described(metadata: Mapping[str, str], config: HieraConfig, sampling: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of a weights file with the preprocessing as JSON."""
    return {**metadata, PREPROCESSING: json.dumps(preprocessing(config, sampling))}


def hub_preprocessing(config: HieraConfig, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """`preprocessing` by the names of Hugging Face's image and video processors, after scaling to [0, 1]."""
    *frames, height, width = config.input_size
    resized = height if config.is_video else int(height / config.test_crop_share)
    of_videos = {"num_frames": frames[0] if frames else 1, **sampling}
    return {
        "do_resize": True,
        "size": {"shortest_edge": resized},
        "resample": PILLOW_RESAMPLE[config.interpolation],
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.pixel_mean),
        "image_std": list(config.pixel_std),
        **(of_videos if config.is_video else {}),
    }
