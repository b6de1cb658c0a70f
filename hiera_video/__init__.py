"""The Hiera model and everything that is only tensors: masked autoencoder, weights, augmentation, rules, metrics."""

from hiera_video.augment import (
    AugmentConfig,
    ClassifierAugmentConfig,
    augment,
    denormalize_video,
    normalize_video,
    random_erase,
)
from hiera_video.backbone import load_backbone
from hiera_video.complexity import Complexity, complexity, complexity_of
from hiera_video.config import EncoderConfig, HieraConfig, MaskedAutoencoderConfig
from hiera_video.hiera import Hiera, HieraEncoder
from hiera_video.inference import Probabilities
from hiera_video.masked_autoencoder import MaeOutput, MaskedAutoencoder
from hiera_video.memory import BF16_SHARE, activation_bytes
from hiera_video.metrics import (
    accuracy_per_class,
    average_precision,
    confused_pairs,
    confusion_matrix,
    expected_calibration_error,
)
from hiera_video.mixing import MixConfig, draw_mix, mix_pixels, mix_targets, soft_cross_entropy, soft_targets
from hiera_video.neighbours import nearest_neighbour_top1
from hiera_video.optimization import (
    OptimizerConfig,
    ScheduleConfig,
    build_optimizer,
    learning_rate_at,
    parameter_groups,
    scaled_learning_rate,
    set_learning_rate,
)
from hiera_video.presets import (
    build_model,
    create_backbone,
    create_model,
    model_config,
    model_names,
    set_activation_checkpointing,
)
from hiera_video.rand_augment import RandAugment, parse_rand_augment, rand_augment
from hiera_video.recognition import recognize_classifier
from hiera_video.reconstruct import Reconstruction, reconstruct, reconstruction_caption
from hiera_video.stochastic import Draws, random_keep_mask, sample_uniforms, validate_keep_mask
from hiera_video.weights import (
    LoadReport,
    huggingface_state_dict,
    load_huggingface,
    load_into_classifier,
    load_model,
    load_official,
    load_weights,
    official_state_dict,
    read_metadata,
    read_weights,
    save_model,
)

__all__ = [
    "BF16_SHARE",
    "AugmentConfig",
    "ClassifierAugmentConfig",
    "Complexity",
    "Draws",
    "EncoderConfig",
    "Hiera",
    "HieraConfig",
    "HieraEncoder",
    "LoadReport",
    "MaeOutput",
    "MaskedAutoencoder",
    "MaskedAutoencoderConfig",
    "MixConfig",
    "OptimizerConfig",
    "Probabilities",
    "RandAugment",
    "Reconstruction",
    "ScheduleConfig",
    "accuracy_per_class",
    "activation_bytes",
    "augment",
    "average_precision",
    "build_model",
    "build_optimizer",
    "complexity",
    "complexity_of",
    "confused_pairs",
    "confusion_matrix",
    "create_backbone",
    "create_model",
    "denormalize_video",
    "draw_mix",
    "expected_calibration_error",
    "huggingface_state_dict",
    "learning_rate_at",
    "load_backbone",
    "load_huggingface",
    "load_into_classifier",
    "load_model",
    "load_official",
    "load_weights",
    "mix_pixels",
    "mix_targets",
    "model_config",
    "model_names",
    "nearest_neighbour_top1",
    "normalize_video",
    "official_state_dict",
    "parameter_groups",
    "parse_rand_augment",
    "rand_augment",
    "random_erase",
    "random_keep_mask",
    "read_metadata",
    "read_weights",
    "recognize_classifier",
    "reconstruct",
    "reconstruction_caption",
    "sample_uniforms",
    "save_model",
    "scaled_learning_rate",
    "set_activation_checkpointing",
    "set_learning_rate",
    "soft_cross_entropy",
    "soft_targets",
    "validate_keep_mask",
]
