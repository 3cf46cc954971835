"""Magnitude: small weights go."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pat.pruning.criteria import Criterion


@dataclass(frozen=True)
class Magnitude(Criterion):
    """standing = |W|. Source: Han et al. 2015, arXiv:1506.02626."""

    name: str = "magnitude"

    def rank(self, score: Tensor | None, dense: Tensor) -> Tensor:
        """|W|, (n,)."""
        return dense.abs()
