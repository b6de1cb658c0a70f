"""Parameter names: this package's (composed by part), the public code's (flat), Hugging Face's.

A name is renamed by the first prefix that it begins with. Hugging Face Hiera counts its blocks within each stage; here
and in the public code they are counted over all stages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

StateDict = dict[str, Tensor]

# This package's, the public code's, Hugging Face's (image models only: it has no separate position tables).
_NAMES = [
    ("encoder.patch_embed.", "patch_embed.proj.", "hiera.embeddings.patch_embeddings.projection."),
    ("encoder.pos_embed.spatial", "pos_embed_spatial", ""),
    ("encoder.pos_embed.temporal", "pos_embed_temporal", ""),
    ("encoder.pos_embed.table", "pos_embed", "hiera.embeddings.position_embeddings"),
    ("encoder.blocks.", "blocks.", "hiera.encoder.blocks."),
    ("encoder_norm.", "encoder_norm.", "encoder_norm."),
    ("norm.", "norm.", "hiera.pooler.layernorm."),
    ("head.", "head.projection.", "classifier."),
    ("fusion.heads.", "multi_scale_fusion_heads.", "multiscale_fusion.multi_scale_fusion_heads."),
    ("decoder.embed.", "decoder_embed.", "decoder.decoder_embeddings."),
    ("decoder.mask_token", "mask_token", "decoder.mask_token"),
    ("decoder.pos_embed", "decoder_pos_embed", "decoder.decoder_position_embeddings"),
    ("decoder.blocks.", "decoder_blocks.", "decoder.decoder_block.layers."),
    ("decoder.norm.", "decoder_norm.", "decoder.decoder_norm."),
    ("decoder.pred.", "decoder_pred.", "decoder.decoder_pred."),
]
_OFFICIAL = [(ours, official) for ours, official, _ in _NAMES]
HUGGINGFACE = [(ours, theirs) for ours, _, theirs in _NAMES if theirs]
HUGGINGFACE_NORMS = [(".norm1.", ".layernorm_before."), (".norm2.", ".layernorm_after.")]


def is_official(names: Iterable[str]) -> bool:
    """Whether names are the public code's."""
    return "patch_embed.proj.weight" in set(names)


def is_huggingface(names: Iterable[str]) -> bool:
    """Whether names are those of a Hugging Face Hiera."""
    return any(name.endswith("embeddings.patch_embeddings.projection.weight") for name in names)


def to_official(state: Mapping[str, Tensor]) -> StateDict:
    """This package's names → the public code's."""
    return {renamed(name, _OFFICIAL): tensor for name, tensor in state.items()}


def from_official(state: Mapping[str, Tensor]) -> StateDict:
    """The public code's names → this package's; a name that is neither stays as it is."""
    table = _reversed(_OFFICIAL)
    return {renamed(name, table): tensor for name, tensor in state.items()}


def from_huggingface(state: Mapping[str, Tensor]) -> StateDict:
    """Names of any Hugging Face Hiera → this package's; a name that is neither stays as it is."""
    bare = not any(name.startswith("hiera.") for name in state)
    prefixed = {f"hiera.{name}" if bare else name: tensor for name, tensor in state.items()}
    stages = _stages_of(prefixed)
    norms = [(new, old) for old, new in HUGGINGFACE_NORMS]
    table = _reversed(HUGGINGFACE)
    return {renamed(replaced(_flat_block(name, stages), norms), table): tensor for name, tensor in prefixed.items()}


def renamed(name: str, table: Sequence[tuple[str, str]]) -> str:
    for prefix, replacement in table:
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    return name


def replaced(name: str, table: Sequence[tuple[str, str]]) -> str:
    for old, new in table:
        name = name.replace(old, new)
    return name


def _reversed(table: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Longest prefixes first: `pos_embed_spatial` must not be taken for `pos_embed`."""
    return sorted(((new, old) for old, new in table), key=lambda pair: -len(pair[0]))


def _stages_of(names: Iterable[str]) -> list[int]:
    """Blocks per stage, from the highest number that occurs in each."""
    highest: dict[int, int] = {}
    for name in names:
        if match := re.match(r"hiera\.encoder\.stages\.(\d+)\.layers\.(\d+)\.", name):
            highest[int(match[1])] = max(highest.get(int(match[1]), -1), int(match[2]))
    return [highest[stage] + 1 for stage in sorted(highest)]


def _flat_block(name: str, stages: Sequence[int]) -> str:
    match = re.fullmatch(r"hiera\.encoder\.stages\.(\d+)\.layers\.(\d+)\.(.*)", name)
    if match is None:
        return name
    return f"hiera.encoder.blocks.{sum(stages[: int(match[1])]) + int(match[2])}.{match[3]}"
