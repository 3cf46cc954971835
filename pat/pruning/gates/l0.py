"""L0: gates that are closed with a probability that is learned."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pat.pruning.gates import Learned

GAMMA, ZETA = -0.1, 1.1  # the stretch: below 0 and above 1, so that exact zeros and ones have a probability
BETA = 2.0 / 3.0


def stretched(s: Tensor) -> Tensor:
    """clamp(s (zeta - gamma) + gamma, 0, 1), (U,)."""
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)


@dataclass(frozen=True)
class L0(Learned):
    """Hard concrete: s = sigmoid((log u - log(1 - u) + a) / beta), z = clamp(s (zeta - gamma) + gamma, 0, 1).

    beta = 2/3, gamma = -0.1, zeta = 1.1. P(z > 0) = sigmoid(a - beta log(-gamma / zeta)); in evaluation
    z = clamp(sigmoid(a) (zeta - gamma) + gamma, 0, 1). u is drawn once per optimizer step, the same for every
    micro-batch and rank. Source: Louizos et al. 2018, arXiv:1712.01312; how a is trained: structures.lagrangian.
    """

    name: str = "l0"

    def sample(self, logit: Tensor, noise: Tensor) -> Tensor:
        """(U,) the sampled gates of a step."""
        return stretched(torch.sigmoid((noise.log() - (-noise).log1p() + logit) / BETA))

    def mean(self, logit: Tensor) -> Tensor:
        """(U,) the gates without noise."""
        return stretched(torch.sigmoid(logit))

    def open(self, logit: Tensor) -> Tensor:
        """P(z > 0), (U,)."""
        return torch.sigmoid(logit - BETA * math.log(-GAMMA / ZETA))
