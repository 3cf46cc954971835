"""How far apart two models' predictions are.

# m positions, v vocabulary or classes
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 24  # logits that are held in fp64 at a time: 128 MB each


def kl(a: Tensor, b: Tensor) -> Tensor:
    """(m,) fp64: sum_v p_a (log p_a - log p_b) in nats, of logits (m, v)."""
    if not a.shape[0]:
        return a.new_zeros(0, dtype=torch.float64)
    rows = max(1, CHUNK_ELEMENTS // a.shape[1])
    return torch.cat([_kl(x, y) for x, y in zip(a.split(rows), b.split(rows), strict=True)])


def first_difference(a: list[int], b: list[int]) -> int | None:
    """The first place, from 0, where two lists differ, one of which may end there; None: they are equal."""
    if a == b:
        return None
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _kl(a: Tensor, b: Tensor) -> Tensor:
    log_a, log_b = a.double().log_softmax(-1), b.double().log_softmax(-1)
    p = log_a.exp()
    return torch.where(p > 0, p * (log_a - log_b), 0.0).sum(-1).clamp(min=0.0)  # 0 log 0 = 0, also of masked words
