"""Learned gates: Adam on their parameter a for the loss, dual ascent on the multipliers of the budget's constraints.

# U units, K constraints (one of the whole model, or one per group of sites, as the budget says), t step (from 0)

    minimise over a, maximise over l:   loss(a) + sum_k l_k (t_k - s_k(a)),   s_k expected sparsity, t_k its target

A step descends the loss, a <- a - lr Adam(dL/da), and then ascends the dual by Newton's method, twice:
l_k <- l_k + d_k / lr, a <- a - d_k for the units of constraint k, d_k = (t_k - s_k) / (ds_k / dd_k), at most 1 a time.
Ascent by a fixed rate does not work beside Adam: Adam takes the penalty's size away and leaves its sign, and the
multipliers wind up while the target ramps (measured on a toy: 15 points off the target after 400 steps; this: below
0.1). The Lagrangian is that of Wang et al. 2019, arXiv:1910.04732, and Xia et al. 2022, arXiv:2204.00408.
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
MOST = 1.0  # of a, in one ascent: gates that are all but open or closed have no slope
ASCENTS = 2


class Lagrangian:
    """The multipliers, and the optimizer of a."""

    def __init__(self, method: Learned, budget: Any, anatomy: Anatomy, sites: Sequence[Site]) -> None:
        self.method, self.budget, self.anatomy, self.sites = method, budget, anatomy, sites
        self.sizes = [site.num_units for site in sites]
        self.final = torch.tensor(budget.target_sparsity(anatomy, sites))  # (K,)
        self.multipliers = torch.zeros(len(self.final))
        self.moments = torch.zeros(2, sum(self.sizes))  # Adam's, of a
        self.steps = torch.zeros((), dtype=torch.int64)
        self.owner = self._owner()

    def _owner(self) -> Tensor:
        """(U,) the constraint that a unit counts in; each in one."""
        is_open = torch.full((sum(self.sizes),), 0.5, requires_grad=True)
        sparsity = self._sparsity(is_open)
        rows = [torch.autograd.grad(s, is_open, retain_graph=True)[0] for s in sparsity]
        counts = torch.stack(rows) != 0  # (K, U)
        assert bool((counts.sum(0) == 1).all()), "a unit counts in several constraints"
        return counts.float().argmax(0)

    def _sparsity(self, is_open: Tensor) -> Tensor:
        """(K,) expected, differentiable."""
        by_site = {site.name: part for site, part in zip(self.sites, is_open.split(self.sizes), strict=True)}
        return self.budget.expected_sparsity(self.anatomy, self.sites, by_site)

    def sample(self, a: Tensor, t: int, seed: int, progress: float) -> Tensor:
        """(U,) the gates of step t: a function of a, the seed and the step."""
        generator = torch.Generator().manual_seed(hash((seed, t)) & 0x7FFF_FFFF_FFFF_FFFF)
        noise = torch.rand(a.shape, generator=generator).clamp(1e-6, 1.0 - 1e-6)
        return self.method.sample(a, noise, progress)

    def step(
        self,
        a: Tensor,  # (U,) fp32
        grad: Tensor,  # (U,) fp32, dL/dz
        t: int,
        seed: int,
        progress: float,  # of the schedule, 0 to 1
        ramp: float,  # how much of the final sparsity is due
    ) -> tuple[Tensor, dict[str, float]]:
        """(a after the step, figures): dL/dz goes back through the sampling; then the constraints."""
        a = a.detach().clone().requires_grad_()
        self.sample(a, t, seed, progress).backward(grad)
        assert a.grad is not None
        a = self._adam(a.detach(), a.grad)
        for _ in range(ASCENTS):
            a, gap = self._ascend(a, progress, ramp)
        return a, {"gap": float(gap.abs().max()), "expected_sparsity": float((ramp * self.final - gap).mean())}

    def _ascend(self, a: Tensor, progress: float, ramp: float) -> tuple[Tensor, Tensor]:
        """(a after one ascent, (K,) t - s before it)."""
        a = a.requires_grad_()
        sparsity = self._sparsity(self.method.open(a, progress))
        (slope,) = torch.autograd.grad(sparsity.sum(), a)
        gap = ramp * self.final - sparsity.detach()
        slopes = torch.zeros_like(gap).index_add_(0, self.owner, -slope)  # (K,) ds / dd > 0
        shift = (gap / slopes.clamp(min=1e-12)).clamp(-MOST, MOST)
        self.multipliers += shift / self.method.lr
        return a.detach() - shift[self.owner], gap

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
