"""Magnitude: units with small weights go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pat.pruning.gates import Evidence, Ranked


@dataclass(frozen=True)
class Magnitude(Ranked):
    """S = sum w^2 / n over the n weights that a unit owns. Source: Li et al. 2017, arXiv:1608.08710 (there: |w|)."""

    name: str = "magnitude"

    needs: ClassVar[Evidence] = "weights"
    comparable: ClassVar[bool] = False  # scores of heads and of neurons are not on one scale

    def update(self, score: Tensor, evidence: Tensor) -> Tensor:
        """The mean square of the weights now, (U,)."""
        return evidence
