"""Hiera for video and images, and everything that is only tensors.

The names below are the front door for scripts and notebooks. The subpackages are the API for programs: `models`,
`weights`, `augmentation`, `metrics`, `analysis`, `optimization`, `inference`.
"""

from hiera_video.models.presets import create_backbone, create_model, model_names
from hiera_video.weights.backbone import load_backbone
from hiera_video.weights.checkpoint_files import load_model, load_official, official_state_dict, save_model

__all__ = [
    "create_backbone",
    "create_model",
    "load_backbone",
    "load_model",
    "load_official",
    "model_names",
    "official_state_dict",
    "save_model",
]
