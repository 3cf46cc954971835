"""L0: gates that are closed with a probability that is learned."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pat.pruning.gates import Learned

STRETCH = (-0.1, 1.1)  # zeta below 0 and gamma above 1: exact zeros and ones have a probability
TEMPERATURE = 2.0 / 3.0


def stretched(s: Tensor) -> Tensor:
    """clamp(s (gamma - zeta) + zeta, 0, 1), (U,)."""
    low, high = STRETCH
    return (s * (high - low) + low).clamp(0.0, 1.0)


@dataclass(frozen=True)
class L0(Learned):
    """Hard concrete: s = sigmoid((log u - log(1 - u) + a) / b), z = clamp(s (gamma - zeta) + zeta, 0, 1), b = 2/3.

    P(z > 0) = sigmoid(a - b log(-zeta / gamma)); in evaluation z = clamp(sigmoid(a) (gamma - zeta) + zeta, 0, 1).
    u is drawn once per optimizer step, the same for every micro-batch and rank. Source: Louizos et al. 2018,
    arXiv:1712.01312.
    """

    name: str = "l0"

    def sample(self, a: Tensor, noise: Tensor, progress: float) -> Tensor:
        """Z of this step, (U,)."""
        return stretched(torch.sigmoid((noise.log() - (-noise).log1p() + a) / TEMPERATURE))

    def mean(self, a: Tensor) -> Tensor:
        """Z without noise, (U,)."""
        return stretched(torch.sigmoid(a))

    def open(self, a: Tensor, progress: float) -> Tensor:
        """P(z > 0), (U,)."""
        return torch.sigmoid(a - TEMPERATURE * math.log(-STRETCH[0] / STRETCH[1]))
