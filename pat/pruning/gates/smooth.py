"""Smooth: a gate without sampling, so that training and evaluation use the same gate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pat.pruning.gates import Learned
from pat.pruning.gates.l0 import stretched


@dataclass(frozen=True)
class Smooth(Learned):
    """z = clamp(sigmoid(a) (zeta - gamma) + gamma, 0, 1), as open as sigmoid(a).

    There is no noise, and so no gap between training and evaluation. A deterministic surrogate of the L0 norm, as
    Huang et al. 2026, arXiv:2603.08065, ask for; the formula is not theirs.
    """

    name: str = "smooth"

    def sample(self, logit: Tensor, noise: Tensor) -> Tensor:
        """z, (U,): the noise is not used."""
        return self.mean(logit)

    def mean(self, logit: Tensor) -> Tensor:
        """z, (U,)."""
        return stretched(torch.sigmoid(logit))

    def open(self, logit: Tensor) -> Tensor:
        """sigmoid(a), (U,)."""
        return torch.sigmoid(logit)
