"""Decoders of the masked autoencoder: the paper's, and two cheaper ones.

Shapes: B batch, V visible tokens, N predicted hidden tokens, E channels of the encoder's output, C channels of the
decoder, P values of a prediction.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from hiera_video.models.blocks import NORM_EPSILON, HieraBlock, Mlp, run_block
from hiera_video.models.config import MaskedAutoencoderConfig
from hiera_video.models.cpu import Linear, attend, train_by_onednn
from hiera_video.models.targets import target_values


class Decoder(nn.Module):
    """Predicts hidden tokens from the encoder's output; the kinds differ in which tokens attend to which.

    - ``full``: self-attention over all tokens, as in Hiera and MAE (arXiv 2111.06377). Predicts every hidden token.
    - ``subset``: the same over the visible and a random share of the hidden tokens, after VideoMAE V2's decoder
      masking (arXiv 2303.16727). Not the paper's decoder: compare the accuracy.
    - ``cross``: hidden queries attend to the encoder's output only, never to each other, after CrossMAE
      (arXiv 2401.14391). Not the paper's decoder: compare the accuracy.
    """

    def __init__(self, config: MaskedAutoencoderConfig) -> None:
        super().__init__()
        width = config.decoder_embed_dim
        self.crosses = config.decoder == "cross"
        self.recompute_activations = False
        self.embed = Linear(config.widths[-1], width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.decoder_tokens, width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        shape = (width, config.decoder_num_heads, config.mlp_ratio)
        new_block = partial(CrossBlock if self.crosses else partial(HieraBlock, width), *shape)
        self.blocks = nn.ModuleList([new_block() for _ in range(config.decoder_depth)])
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.pred = Linear(width, target_values(config))
        train_by_onednn(self)  # no max-pooling follows here

    def forward(self, visible: Tensor, visible_index: Tensor, hidden_index: Tensor) -> Tensor:
        """Encoder output ``[B, V, E]`` at raster numbers ``[B, V]``, hidden ``[B, N]`` → predictions ``[B, N, P]``."""
        positions = self.pos_embed[0]
        memory = self.embed(visible) + positions[visible_index]
        hidden = self.mask_token + positions[hidden_index]
        decoded = self._cross_attend(hidden, memory) if self.crosses else self._self_attend(hidden, memory)
        prediction: Tensor = self.pred(self.norm(decoded))
        return prediction

    def _self_attend(self, hidden: Tensor, memory: Tensor) -> Tensor:
        tokens = torch.cat([memory, hidden], dim=1).unsqueeze(1)  # [B, 1, V + N, C]
        for block in self.blocks[:-1]:
            tokens = run_block(block, tokens, recompute=self.recompute_activations)
        # Only hidden tokens are predicted, so the last block need not update the visible ones.
        tokens = run_block(self.blocks[-1], tokens, None, memory.shape[1], recompute=self.recompute_activations)
        return tokens[:, 0]

    def _cross_attend(self, hidden: Tensor, memory: Tensor) -> Tensor:
        for block in self.blocks:
            hidden = run_block(block, hidden, memory, recompute=self.recompute_activations)
        return hidden


class CrossAttention(nn.Module):
    """Queries of one sequence, keys and values of another."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = Linear(dim, dim)
        self.kv = Linear(dim, 2 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        """``[B, N, C]``, ``[B, V, C]`` → ``[B, N, C]``."""
        parts = (self.q(queries), *self.kv(memory).chunk(2, dim=-1))
        heads = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        mixed: Tensor = self.proj(attend(*heads).transpose(1, 2).flatten(2))
        return mixed


class CrossBlock(nn.Module):
    """Cross-attention and MLP with residuals. Each block has its own norm of the memory."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPSILON)
        self.norm_memory = nn.LayerNorm(dim, eps=NORM_EPSILON)
        self.attn = CrossAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPSILON)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, hidden: Tensor, memory: Tensor) -> Tensor:
        """``[B, N, C]``, ``[B, V, C]`` → ``[B, N, C]``."""
        hidden = hidden + self.attn(self.norm1(hidden), self.norm_memory(memory))
        mixed: Tensor = hidden + self.mlp(self.norm2(hidden))
        return mixed
