"""Learned gates: Adam on their parameter a, gradient ascent on the multipliers that hold the expected cost at its target.

# U units, K constraints (one of the whole model, or one per structure or site as the budget says), t step (from 0)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pat.models.anatomy import Anatomy
from pat.pruning.gates import Learned
from pat.pruning.sites import Site

BETAS, EPS = (0.9, 0.999), 1e-8


class Lagrangian:
    """The multipliers, and the optimizer of a."""

    def __init__(self, method: Learned, budget: Any, anatomy: Anatomy, sites: Sequence[Site]) -> None:
        self.method, self.budget, self.anatomy, self.sites = method, budget, anatomy, sites
        self.sizes = [site.num_units for site in sites]
        self.final = torch.tensor(budget.target_sparsity(anatomy, sites))  # (K,)
        self.multipliers = torch.zeros(2, len(self.final))  # of the gap and of its square
        self.moments = torch.zeros(2, sum(self.sizes))  # Adam's, of a
        self.steps = torch.zeros((), dtype=torch.int64)

    def sample(self, a: Tensor, t: int, seed: int, progress: float) -> Tensor:
        """(U,) the gates of step t: a function of a, the seed and the step."""
        generator = torch.Generator().manual_seed(hash((seed, t)) & 0x7FFF_FFFF_FFFF_FFFF)
        noise = torch.rand(a.shape, generator=generator).clamp(1e-6, 1.0 - 1e-6)
        return self.method.sample(a, noise, progress)

    def step(
        self, a: Tensor, grad: Tensor, t: int, seed: int, progress: float, ramp: float
    ) -> tuple[Tensor, dict[str, float]]:
        """(a after the step, figures): dL/dz goes back through the sampling, and the penalty's gradient is added."""
        a = a.detach().clone().requires_grad_()
        self.sample(a, t, seed, progress).backward(grad)
        is_open = self.method.open(a, progress)
        by_site = {site.name: part for site, part in zip(self.sites, is_open.split(self.sizes), strict=True)}
        gap = ramp * self.final - self.budget.expected_sparsity(self.anatomy, self.sites, by_site)  # (K,)
        (self.multipliers[0] * gap + self.multipliers[1] * gap.square()).sum().backward()
        gap = gap.detach()
        rate = self.method.lagrangian_lr
        self.multipliers[0] += rate * gap
        self.multipliers[1] += rate * gap.square()
        assert a.grad is not None
        figures = {"gap": float(gap.abs().max()), "expected_sparsity": float((ramp * self.final - gap).mean())}
        return self._adam(a.detach(), a.grad), figures

    def _adam(self, a: Tensor, grad: Tensor) -> Tensor:
        self.steps += 1
        mean, square = self.moments
        mean.lerp_(grad, 1.0 - BETAS[0])
        square.lerp_(grad * grad, 1.0 - BETAS[1])
        n = int(self.steps)
        scale = (square / (1.0 - BETAS[1] ** n)).sqrt_().add_(EPS)
        return a - self.method.lr * (mean / (1.0 - BETAS[0] ** n)) / scale

    def tensors(self) -> dict[str, Tensor]:
        """What is saved."""
        return {"multipliers": self.multipliers, "moments": self.moments, "steps": self.steps}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what was saved."""
        self.multipliers, self.moments = tensors["multipliers"].clone(), tensors["moments"].clone()
        self.steps = tensors["steps"].clone()
