"""Smooth: a gate without sampling, what is trained is what is evaluated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pat.pruning.gates import Learned
from pat.pruning.gates.l0 import stretched


@dataclass(frozen=True)
class Smooth(Learned):
    """z = clamp(sigmoid(a) (gamma - zeta) + zeta, 0, 1), as open as sigmoid(a / b), b from 1 down to `temperature`.

    The count of open gates is a soft one that sharpens with the schedule's progress, so that gates leave the middle;
    there is no noise, and so no gap between training and evaluation. A deterministic surrogate of the L0 norm, as
    Huang et al. 2026, arXiv:2603.08065, ask for; the formula is not theirs.
    """

    name: str = "smooth"
    temperature: float = 0.2

    def __post_init__(self) -> None:
        """Refuse a temperature that is none."""
        super().__post_init__()
        if not 0.0 < self.temperature <= 1.0:
            raise ValueError(f"gate.temperature is {self.temperature}, but must lie above 0 and be at most 1.")

    def sample(self, a: Tensor, noise: Tensor, progress: float) -> Tensor:
        """z, (U,): the noise is not used."""
        return self.mean(a)

    def mean(self, a: Tensor) -> Tensor:
        """z, (U,)."""
        return stretched(torch.sigmoid(a))

    def open(self, a: Tensor, progress: float) -> Tensor:
        """sigmoid(a / b), (U,)."""
        return torch.sigmoid(a / (1.0 + progress * (self.temperature - 1.0)))
