"""What a sparsity counts, and what it leaves. One file for each budget.

Of weights (`of_weights`): the fraction of single weights. Of structures:

    check(anatomy, sites)                        ValueError, one sentence, for what cannot be reached
    choose(anatomy, sites, scores, ...)          the keep flags of what a budget allows, from one score per unit
    expected_sparsity(anatomy, sites, open)      (K,) differentiable: what gates with these probabilities of being open
                                                 remove on average, for each of K constraints
    target_sparsity(anatomy, sites)              (K,) what they should remove
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from pat.common.rounding import exact
from pat.models.anatomy import Anatomy
from pat.pruning.structures.choose import Choice, choice, even, keep_counts, within
from pat.pruning.structures.costs import Cost, dense_widths, widths
from pat.pruning.structures.grid import Group, Limits, by_structure, groups
from pat.pruning.structures.sites import Site


@dataclass(frozen=True)
class StructureBudget(ABC):
    """A fraction of what the whole dense model costs, its embeddings and heads included, is removed at least.

    The model that is left is the widest on the grid that costs at most (1 - sparsity) of the dense one.
    """

    name: str = ""
    sparsity: float = field(kw_only=True)  # share to remove by the end of the schedule
    per_layer: bool = field(default=False, kw_only=True)  # a width for every layer; needs hf_compatible=false
    multiple_of: int | None = field(default=None, kw_only=True)  # neuron step; null: 64 if it divides the width, else 1
    tensor_parallel: int = field(default=1, kw_only=True)  # ranks over which serving splits heads and neurons
    hf_compatible: bool = field(default=True, kw_only=True)  # the export must load with stock from_pretrained

    of_weights: ClassVar[bool] = False
    unit: ClassVar[str] = ""  # of the cost

    def __post_init__(self) -> None:
        """Refuse what cannot be reached, and what the stock classes cannot hold."""
        if not 0.0 <= self.sparsity < 1.0:
            in_per_cent = 1.0 < self.sparsity < 100.0
            what_to_do = f"did you mean {self.sparsity / 100:g}?" if in_per_cent else "0.5 removes half."
            raise ValueError(f"budget.sparsity is {self.sparsity}, but must be at least 0 and below 1: {what_to_do}")
        if self.per_layer and self.hf_compatible:
            raise ValueError(
                "budget.per_layer=true leaves a width per layer, which stock from_pretrained cannot load: set "
                "budget.hf_compatible=false and load the exported model with pat.export.load, or per_layer=false."
            )
        Limits(self.multiple_of, self.tensor_parallel, self.hf_compatible)

    @property
    def ties_sites(self) -> bool:
        """Whether all sites of a structure keep the same number of units."""
        return not self.per_layer

    @abstractmethod
    def cost(self, anatomy: Anatomy) -> Cost:
        """What is counted, in `unit`, as coefficients of the units that are left (pat.pruning.structures.costs).
        ValueError where it is not known for this model."""

    def check(self, anatomy: Anatomy, sites: Sequence[Site]) -> None:
        """ValueError where the target cannot be reached."""
        self.choose(anatomy, sites, {site.name: torch.zeros(site.num_units) for site in sites})

    def choose(
        self,
        anatomy: Anatomy,
        sites: Sequence[Site],
        scores: Mapping[str, Tensor],  # per site (num_units,) fp32, higher = keep
        progress: float = 1.0,  # share of the sparsity that is removed by now
        comparable: bool = True,  # a score means the same in all structures, such as a change of the loss; False: each
        # structure loses about the same share of its units
        per_cost: bool = False,  # a score is per cost already, as a keep probability is: the lowest go first
    ) -> Choice:
        """The keep flags of the highest scores under `progress` of the sparsity, where no group of sites could be wider
        within

            cost(kept) <= (1 - progress * sparsity) * cost(dense)

        pat.pruning.structures.choose says which units go first. ValueError where even the narrowest model costs more.
        """
        cost, limits = self.cost(anatomy), Limits(self.multiple_of, self.tensor_parallel, self.hf_compatible)
        dense = dense_widths(anatomy)
        full = cost.total(dense)
        removed = exact(self.sparsity) * exact(progress)
        on_the_way = _with_full(groups(anatomy, sites, limits, self.per_layer), progress)
        weighed = scores if comparable else even(sites, scores, cost, dense)
        if per_cost:
            weighed = {site.name: scores[site.name].double() * cost.per_unit(site, dense) for site in sites}
        limit = math.floor((1 - removed) * full)
        counts = within(on_the_way, weighed, cost, anatomy, limit, widest=not per_cost, order=scores)
        if counts is None:
            names = ", ".join(by_structure(sites))
            least = choice(
                anatomy, sites, keep_counts(on_the_way, [g.counts[0] for g in on_the_way], scores), cost, self.unit
            )
            raise ValueError(
                f"budget.{self.name}: sparsity {self.sparsity} cannot be reached by {names}, which remove at most "
                f"{1 - least.after / full:.4f} of the model's {full:,} {self.unit}: lower it or prune more structures."
            )
        return choice(anatomy, sites, keep_counts(on_the_way, counts, scores), cost, self.unit)

    def expected_sparsity(
        self,
        anatomy: Anatomy,
        sites: Sequence[Site],
        open: Mapping[str, Tensor],  # per site (num_units,) fp32: probability that the gate is open
    ) -> Tensor:
        """(1,) 1 - E[cost] / cost of the dense model."""
        cost = self.cost(anatomy)
        return 1.0 - (cost.total(widths(anatomy, sites, open)) / cost.total(dense_widths(anatomy))).reshape(1)

    def target_sparsity(self, anatomy: Anatomy, sites: Sequence[Site]) -> list[float]:
        """[sparsity]: one constraint, K = 1, on the cost of the whole model."""
        return [self.sparsity]


def _with_full(on_the_grid: Sequence[Group], progress: float) -> list[Group]:
    """On the way to the target a group may keep its full width, even off the grid."""
    if progress >= 1.0:
        return list(on_the_grid)
    return [
        group
        if group.counts[-1] == group.full
        else Group(group.structure, group.sites, group.pooled, (*group.counts, group.full))
        for group in on_the_grid
    ]
