"""How well features separate classes without training: the nearest-neighbour probe of the self-supervised papers.

Source: weighted votes of Wu et al. (arXiv 1805.01978), with the values that DINO (arXiv 2104.14294) uses.
Shapes: N samples of the bank, Q queries, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

NEIGHBOURS = 20
TEMPERATURE = 0.07


def nearest_neighbour_top1(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, labels: Tensor, neighbours: int = NEIGHBOURS
) -> float:
    """Share of the queries whose label wins among their nearest neighbours, which vote by cosine similarity.

    Features are ``[N, C]`` and ``[Q, C]``, labels int64 ``[N]`` and ``[Q]``.

    Raises:
        ValueError: no sample in the bank, or no query.
    """
    if len(bank) == 0 or len(queries) == 0:
        raise ValueError(f"bank={len(bank)}, queries={len(queries)}: must both contain samples; give labelled clips")
    centre = bank.float().mean(0)  # a common offset makes all cosines alike
    similarity = functional.normalize(queries.float() - centre) @ functional.normalize(bank.float() - centre).T
    nearest = similarity.topk(min(neighbours, len(bank)), dim=1)
    votes = torch.zeros(len(queries), int(bank_labels.max()) + 1)
    votes.scatter_add_(1, bank_labels[nearest.indices], (nearest.values / TEMPERATURE).exp())
    return float((votes.argmax(1) == labels).float().mean())
