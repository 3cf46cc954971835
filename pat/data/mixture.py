"""Several sources in one data set, each seen as often as its weight says."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

# n_k samples of source k, m_k = max(1, round(w_k n_k)) of them in an epoch, M = sum of m_k


@lru_cache(maxsize=2)
def permutation(key: str, n: int) -> Tensor:
    """(n,) int64: a permutation that the key decides. Shared: do not write to it."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Mixture:
    """Concatenated sources in one data set. An epoch draws m_k samples of source k, all sources shuffled.

    Over the epochs a source is drawn from without replacement: the next epoch goes on where the last one stopped, and
    it is shuffled anew when all of it was drawn. So with weight 2 an epoch has each sample twice, with weight 0.5 two
    epochs have it once. Everything is a function of the seed and the epoch.
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def draws(self) -> list[int]:
        """m_k: samples of each source in an epoch."""
        return [max(1, round(w * n)) for n, w in zip(self.sizes, self.weights, strict=True)]

    def order(self, seed: int, epoch: int) -> Tensor:
        """(M,) int64: the samples of an epoch, as positions in the whole data set. Shared: do not write to it."""
        return _order(self, seed, epoch)


@lru_cache(maxsize=2)
def _order(mixture: Mixture, seed: int, epoch: int) -> Tensor:
    chosen, offset = [], 0
    for k, (n, m) in enumerate(zip(mixture.sizes, mixture.draws, strict=True)):
        first, last = epoch * m, (epoch + 1) * m  # in the endless sequence of this source's permutations
        passes = range(first // n, (last - 1) // n + 1)
        drawn = torch.cat([permutation(f"{seed}/source {k}/{number}", n) for number in passes])
        start = first - passes[0] * n
        chosen.append(offset + drawn[start : start + m])
        offset += n
    every = torch.cat(chosen)
    return every[permutation(f"{seed}/{epoch}", len(every))]
