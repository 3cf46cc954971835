"""Random: the baseline that every criterion has to beat."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from pat.pruning.criteria import Criterion, Place

CHUNK = 1 << 16  # elements hashed at a time: the 64-bit temporaries stay small


@dataclass(frozen=True)
class Random(Criterion):
    """standing = hash(seed, parameter, index) in [0, 1): fixed for a run, however ranks cut the shards.

    Mixing function: SplitMix64, Steele et al. 2014, doi:10.1145/2660193.2660195. As a baseline: arXiv:2003.03033.
    """

    name: str = "random"

    def rank(self, score: Tensor | None, dense: Tensor) -> Tensor:
        """As if the piece were the whole of an unnamed parameter under seed 0, (n,)."""
        return self.rank_at(Place("", tuple(dense.shape), 0, 0), score, dense)

    def rank_at(self, place: Place, score: Tensor | None, dense: Tensor) -> Tensor:
        """Uniform in [0, 1) with 24 bits, (n,)."""
        key = _splitmix(torch.tensor(place.seed ^ (zlib.crc32(place.name.encode()) << 31))).to(dense.device)
        out = torch.empty_like(dense, dtype=torch.float32)
        for at in range(0, dense.numel(), CHUNK):
            stop = min(at + CHUNK, dense.numel())
            index = torch.arange(place.start + at, place.start + stop, device=dense.device)
            out[at:stop] = (_splitmix(index + key) >> 40 & 0xFFFFFF).float() * 2.0**-24
        return out


def _splitmix(x: Tensor) -> Tensor:
    """SplitMix64's step and finaliser, elementwise; int64 wraps as uint64 does, shifts are made logical."""
    x = x * -7046029254386353131 + -7046029254386353131  # golden-ratio increments: 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ (x >> 31 & (1 << 33) - 1)
