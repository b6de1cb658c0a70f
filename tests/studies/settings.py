"""The settings of the studies: data, models, and what was tried for each side."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hiera_video.models.config import HieraConfig, MaskedAutoencoderConfig
from tests.studies.clips import Cut
from tests.studies.learning import FinetuneSetting, PretrainSetting


@dataclass(frozen=True)
class Study:
    """One comparison of pretrained and from scratch."""

    name: str
    about: str
    """Begin of the page: what the data are, where they come from, how the folder is laid out."""
    labelled: str
    """List of the labelled clips, a CSV file in the folder of the data."""
    labelled_cut: Cut
    unlabelled: str
    """List of the videos for pretraining, of which the split train is used."""
    unlabelled_cut: Cut
    centres: str | None
    """Centres of the cut; None: the middle of the picture."""
    classifier: HieraConfig
    pretraining: PretrainSetting
    variants: Mapping[str, PretrainSetting]
    """Other ways to pretrain, for the probe alone."""
    scratch: tuple[FinetuneSetting, ...]
    """Candidates; the best with `TUNED_LABELS` labels a class is taken."""
    pretrained: tuple[FinetuneSetting, ...]
    """As many candidates."""


def digest_of(setting: object) -> str:
    """A name for what depends on a setting."""
    return hashlib.sha256(repr(setting).encode()).hexdigest()[:8]


# Units of 2 × 8 × 8 pixels: 96 of them, of which 24 stay visible at 0.75.
_ENCODER: dict[str, Any] = {
    "input_size": (12, 32, 32),
    "embed_dim": 32,
    "num_heads": 1,
    "stages": (1, 3),
    "q_pool": 1,
    "q_stride": (1, 2, 2),
    "mask_unit_size": (1, 2, 2),
    "mask_unit_attn": (True, False),
    "patch_kernel": (3, 7, 7),
    "patch_stride": (2, 4, 4),
    "patch_padding": (1, 3, 3),
    "sep_pos_embed": True,
    # Of these pictures, skin around a mouth: by the usual 0.45 and 0.225 they would have a large offset and hardly any
    # contrast.
    "pixel_mean": (0.69, 0.48, 0.34),
    "pixel_std": (0.08, 0.09, 0.07),
}
_AUTOENCODER = MaskedAutoencoderConfig(
    **_ENCODER, mask_ratio=0.75, target="pixels", decoder_embed_dim=64, decoder_depth=2, decoder_num_heads=4
)
_FEW = FinetuneSetting(steps=400, batch=8, smoothing=0.0)

_GRID_ABOUT = """# Study: spoken digits on real video

Lip reading of one speaker of the GRID corpus (Cooke et al., 2006; Zenodo record 3625687): ten digits, 100 clips each,
700 for training, 100 for validation, 200 for tests, split by sentence. Pretraining sees all words of the 700 training
sentences without their labels: 3,500 clips. The folder holds `annotations.csv` and `words.csv` (columns `path`,
`label`, `split`, `source_video`; clips of 16 frames around the word, paths relative to the folder) and
`mouth_centres.csv` (`source_video`, `x`, `y`, pixels): a square of 54 pixels around the mouth is stored at 36 × 36,
of which a view is 12 frames of 32 × 32. The data are not part of this repository."""

GRID_DIGITS = Study(
    name="grid-digits",
    about=_GRID_ABOUT,
    labelled="annotations.csv",
    labelled_cut=Cut(frames=16, box=54, side=36),
    unlabelled="words.csv",
    unlabelled_cut=Cut(frames=16, box=54, side=36),
    centres="mouth_centres.csv",
    classifier=HieraConfig(**_ENCODER, num_classes=10),
    pretraining=PretrainSetting(_AUTOENCODER, steps=2000, batch=32, learning_rate=2e-3, kept_at=(0, 250, 500, 1000)),
    variants={},
    scratch=(
        dataclasses.replace(_FEW, learning_rate=1e-3, fresh="autoencoder"),
        dataclasses.replace(_FEW, learning_rate=3e-3, fresh="autoencoder"),
        dataclasses.replace(_FEW, learning_rate=1e-3, fresh="autoencoder", steps=800),
        dataclasses.replace(_FEW, learning_rate=1e-3, fresh="autoencoder", steps=3200),
    ),
    pretrained=(
        dataclasses.replace(_FEW, learning_rate=1e-3, layer_decay=0.75),
        dataclasses.replace(_FEW, learning_rate=3e-3, layer_decay=0.75),
        dataclasses.replace(_FEW, learning_rate=1e-3, layer_decay=0.75, steps=800),
        dataclasses.replace(_FEW, learning_rate=1e-3, layer_decay=1.0),
    ),
)
STUDIES = {study.name: study for study in (GRID_DIGITS,)}
