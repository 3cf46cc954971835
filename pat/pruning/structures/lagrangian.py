"""Learned gates: descent on the logits of their keep probabilities, on the surface where the budget holds.

# U units, K constraints, a (U,) logits, t step (from 0), T temperature of the step
# p_i = P(z_i > 0), increasing in a_i / T; g_i = dL/dz_i at the gates of the step; c_i = -ds_k/dp_i, what a unit costs

    minimise over p   E[L]     subject to   s_k(p) = t_k     s_k expected sparsity, t_k its target at the step

The Lagrangian is E[L] + sum_k l_k (t_k - s_k) (Wang et al. 2019, arXiv:1910.04732; Xia et al. 2022, arXiv:2204.00408).
A step follows its natural gradient: dE[L]/da_i over the Fisher information p_i (1 - p_i) of a gate is
E[L | z_i = 1] - E[L | z_i = 0], and g_i is a sample of that:

    a_i <- a_i - lr T (g_i + l_k c_i) / r       r the root mean square of g, over the units of a structure and the steps

with the l_k under which the constraints hold afterwards, found by Newton's method: one step of exponentiated gradient
descent on p, projected in the Kullback-Leibler divergence. No unit has a scale of its own: where Adam divides every
gradient by its own size, units are ordered by the signal-to-noise ratio of their gradient, not by their worth.

A step's g is mostly noise, and its mean over few steps hardly says which units the loss needs. The size of each
example's gradient says so from the first step on. A part of a follows it (Molchanov et al. 2019,
arXiv:1906.10771), in the soft phase, too, where other units are closed:

    a_i = spread (x_i - mean x) / deviation of x + what the steps have moved
    x_i = log(|g_i| / c_i)       |g_i| the mean over steps and examples b of |dL_b/dz_i|; mean and deviation over the
                                 units of a constraint

Budgets that leave one width in all layers tie the sites of a structure: every site's expected number of open gates is
the mean over its sites, so that what is trained is what the final choice can keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pat.common.typed import split
from pat.models.anatomy import Anatomy
from pat.pruning.gates import Learned
from pat.pruning.structures.sites import Site

DECAY = 0.999  # of the mean square of g
MOST = 1.0  # the most that a Newton step moves a logit a / T, as nearly open or closed gates have no slope
FLAT = 1e-3  # dp/da of a gate that is all but open or closed
ROUNDS = 8  # Newton steps at most, for each multiplier
CLOSE = 1e-4  # a gap of a constraint that needs no further step


class Lagrangian:
    """The constraints, and the scale of the gradient."""

    def __init__(self, method: Learned, budget: Any, anatomy: Anatomy, sites: Sequence[Site]) -> None:
        self.method, self.budget, self.anatomy, self.sites = method, budget, anatomy, sites
        self.sizes = [site.num_units for site in sites]
        structures = sorted({site.structure for site in sites})
        self.structure = _per_unit([structures.index(site.structure) for site in sites], self.sizes)  # (U,)
        self.site = _per_unit(range(len(sites)), self.sizes)  # (U,)
        self.final = torch.tensor(budget.target_sparsity(anatomy, sites))  # (K,)
        self.tied = budget.ties_sites
        self.squares = torch.zeros(len(structures))  # decaying sums of g^2, mean over a structure's units
        self.steps = torch.zeros((), dtype=torch.int64)
        self.importance = torch.zeros(sum(self.sizes))  # sum over steps of the mean |dL_b/dz|
        self.soft = torch.zeros((), dtype=torch.int64)  # 1: the soft phase has begun
        self.constraint = self._constraint()  # (U,)

    def _constraint(self) -> Tensor:
        """(U,) the constraint that a unit counts in; each in one."""
        is_open = torch.full((sum(self.sizes),), 0.5, requires_grad=True)
        sparsity = self._sparsity(is_open)
        rows = [torch.autograd.grad(s, is_open, retain_graph=True)[0] for s in sparsity]
        counts = torch.stack(rows) != 0  # (K, U)
        assert bool((counts.sum(0) == 1).all()), "a unit counts in several constraints"
        return counts.float().argmax(0)

    def _sparsity(self, is_open: Tensor) -> Tensor:
        """(K,) expected, differentiable."""
        by_site = {site.name: part for site, part in zip(self.sites, split(is_open, self.sizes), strict=True)}
        return self.budget.expected_sparsity(self.anatomy, self.sites, by_site)

    # -- what units are worth --------------------------------------------------------------------------------------

    def observe(self, grad: Tensor, size: Tensor) -> None:
        """A dense step's (U,) dL/dz and mean |dL_b/dz|: to first order what an example loses when a gate closes."""
        self.importance += size
        self._scale(grad)

    @property
    def begun(self) -> bool:
        """Whether the soft phase has begun."""
        return bool(self.soft)

    def begin(self, a: Tensor) -> Tensor:
        """(U,) a where the soft phase begins, by what the dense one has shown."""
        self.soft = torch.ones((), dtype=torch.int64)
        return a + self._worth()

    def weigh(self, a: Tensor, size: Tensor) -> Tensor:
        """(U,) a once a soft step has shown more: its (U,) mean |dL_b/dz|."""
        before = self._worth()
        self.importance += size
        return a + (self._worth() - before)

    def _worth(self) -> Tensor:
        """(U,) the part of a that follows the importance; 0 where nothing has been seen."""
        if not bool(self.importance.any()):
            return torch.zeros_like(self.importance)
        least = float(self.importance[self.importance > 0].min())
        x = self.importance.clamp(min=least).log() - self._dense_cost.clamp(min=1e-20).log()
        counts = torch.bincount(self.constraint, minlength=len(self.final))
        x = x - (self._per_constraint(x) / counts)[self.constraint]
        deviation = (self._per_constraint(x * x) / counts).sqrt().clamp(min=1e-6)
        return self.method.spread * x / deviation[self.constraint]

    @cached_property
    def _dense_cost(self) -> Tensor:
        """(U,) c where all gates are open."""
        is_open = torch.ones(sum(self.sizes), requires_grad=True)
        return torch.autograd.grad(-self._sparsity(is_open).sum(), is_open)[0]

    # -- a step ----------------------------------------------------------------------------------------------------

    def step(
        self,
        a: Tensor,  # (U,) fp32
        grad: Tensor,  # (U,) fp32, dL/dz
        temperature: float,
        ramp: float,  # how much of the final sparsity is due
    ) -> tuple[Tensor, dict[str, float]]:
        """(a after the step, figures): against the loss, then back to where the constraints hold."""
        scale = self._scale(grad)[self.structure]  # (U,)
        a = a - self.method.lr * temperature * grad / scale  # a / T moves as far at any T
        a, multipliers, gap = self.project(a, scale, temperature, ramp)
        undecided = self.method.mean(a / temperature)
        figures = {
            "gap": float(gap.abs().max()),
            "expected_sparsity": float((ramp * self.final - gap).mean()),
            "multiplier": float(multipliers.abs().max()),
            "undecided": float(((undecided > 0.05) & (undecided < 0.95)).float().mean()),
        }
        return a, figures

    def _scale(self, grad: Tensor) -> Tensor:
        """(structures,) root mean square of g, this step's included."""
        counts = torch.bincount(self.structure, minlength=len(self.squares))
        now = torch.zeros_like(self.squares).index_add_(0, self.structure, grad * grad) / counts
        self.squares.lerp_(now, 1.0 - DECAY)
        self.steps += 1
        return (self.squares / (1.0 - DECAY ** int(self.steps))).sqrt().clamp(min=1e-30)

    def project(
        self,
        a: Tensor,  # (U,)
        scale: Tensor,  # (U,) r
        temperature: float,
        ramp: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(a where the constraints hold, (K,) the multipliers that brought it there, (K,) the gaps t - s before)."""
        a = self._even(a, temperature)
        multipliers, first = torch.zeros_like(self.final), None
        for _ in range(ROUNDS):
            a = a.detach().requires_grad_()
            is_open = self.method.open(a / temperature)
            sparsity = self._sparsity(is_open)
            gap = ramp * self.final - sparsity.detach()
            first = gap if first is None else first
            if float(gap.abs().max()) < CLOSE:
                break
            (cost,) = torch.autograd.grad(-sparsity.sum(), is_open, retain_graph=True)
            (slope,) = torch.autograd.grad(-sparsity.sum(), a)
            move = cost / scale  # (U,) per unit of lr l
            rise = self._per_constraint(slope * move).clamp(min=1e-20)  # (K,) ds / d(lr l)
            undecided = slope > FLAT * cost  # dp/da: gates that are open or closed for good must not hold up the others
            most = self._per_constraint(torch.where(undecided, move, 0.0), "amax")
            limit = MOST * temperature / torch.where(most > 0.0, most, self._per_constraint(move, "amax"))
            shift = (gap / rise).clamp(-limit, limit)
            multipliers += shift / (self.method.lr * temperature)
            moved = (shift[self.constraint] * move).clamp(-MOST * temperature, MOST * temperature)
            a = self._even(a.detach() - moved, temperature)
        assert first is not None
        return a.detach(), multipliers, first

    def _even(self, a: Tensor, temperature: float) -> Tensor:
        """Tied sites of a structure: each shifted to the mean of their expected numbers of open gates."""
        if not self.tied:
            return a
        counts = torch.tensor(self.sizes).float()
        of_site = self.structure[torch.cat([torch.zeros(1), counts.cumsum(0)[:-1]]).long()]  # (S,) structure
        wanted = None
        for _ in range(ROUNDS):
            a = a.detach().requires_grad_()
            is_open = self.method.open(a / temperature)
            (slope,) = torch.autograd.grad(is_open.sum(), a)
            share = self._per_site(is_open.detach()) / counts  # (S,)
            if wanted is None:
                sums = torch.zeros(len(self.squares)).index_add_(0, of_site, share)
                wanted = (sums / torch.bincount(of_site, minlength=len(self.squares)))[of_site]
                wanted = torch.where(counts > 1, wanted, share)  # whole layers stay or go
            if float((wanted - share).abs().max()) < CLOSE:
                break
            limit = MOST * temperature
            shift = ((wanted - share) * counts / self._per_site(slope).clamp(min=1e-20)).clamp(-limit, limit)
            a = a.detach() + shift[self.site]
        return a.detach()

    def _per_site(self, values: Tensor) -> Tensor:
        """(U,) summed to (S,)."""
        return torch.zeros(len(self.sizes)).index_add_(0, self.site, values)

    def _per_constraint(self, values: Tensor, reduce: str = "sum") -> Tensor:
        """(U,) to (K,)."""
        out = torch.zeros_like(self.final)
        if reduce == "sum":
            return out.index_add_(0, self.constraint, values)
        return out.scatter_reduce_(0, self.constraint, values, reduce)

    # -- state -----------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds beside a: sums of g^2, steps, importance, and whether the soft phase has begun."""
        return {"squares": self.squares, "steps": self.steps, "importance": self.importance, "soft": self.soft}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what was saved. ValueError where another version of pat saved it."""
        if absent := [key for key in self.tensors() if key not in tensors]:
            raise ValueError(
                f"the checkpoint's learned gates have no {', '.join(absent)}: an earlier version of pat made it, which "
                "trained them by another rule; use another run.dir or run.resume=never"
            )
        self.squares, self.steps = tensors["squares"].clone(), tensors["steps"].clone()
        self.importance, self.soft = tensors["importance"].clone(), tensors["soft"].clone()


def _per_unit(values: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """(U,) each site's value, repeated for its units."""
    return torch.tensor(list(values)).repeat_interleave(torch.tensor(sizes))
