"""Structured movement: units that training pushes towards zero go."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pat.pruning.gates import Ranked


@dataclass(frozen=True)
class Movement(Ranked):
    """S <- S - dL/dz, at closed gates too.

    dL/dz at a unit's gate is sum W dL/dW over the unit's weights in the consuming matrix, so this is movement with a
    score per unit. Source: Lagunas et al. 2021, arXiv:2109.04838.
    """

    name: str = "movement"

    def update(self, score: Tensor, evidence: Tensor) -> Tensor:
        """S - dL/dz, (U,)."""
        return score - evidence
