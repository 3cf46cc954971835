"""Where a structure pruner is going: what its budget leaves in the end, and how much of that is due at a step.

# U units over all sites of the pruner
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from torch import Tensor

from pat.pruning.schedules import Timeline
from pat.pruning.structures.choose import Choice
from pat.pruning.structures.units import Inventory

_QUANTITIES = {"parameters": "parameters", "flops": "FLOPs", "memory": "memory", "latency": "latency"}
SHARE_DIGITS = 12  # of a share of the budget: 0.15 / 0.3 is a half, whatever the last bit of the quotient says


class Goal:
    """The budget's final choice: where all scores are equal, until it is made (`settle`)."""

    def __init__(self, budget: Any, units: Inventory) -> None:
        self.budget, self.units = budget, units
        self.settled = False

    @property
    def is_certain(self) -> bool:
        """Whether it has these widths whatever the scores are. Where a cost is to be removed from several structures,
        or from each layer by itself, scores say how much each of them gives."""
        kinds = {site.structure for site in self.units.sites}
        return self.settled or self.budget.sparsity is None or (len(kinds) == 1 and not self.budget.per_layer)

    @cached_property
    def choice(self) -> Choice:
        """What stays where all scores are equal, and how many units of each site."""
        units = self.units
        return self.budget.choose(units.anatomy, units.sites, units.split(0.0 * units.ones()))

    @cached_property
    def keep(self) -> Tensor:
        """(U,) bool: what stays."""
        return self.units.join(self.choice.keep)

    @property
    def weights(self) -> int:
        """Prunable parameters that the final choice removes, over all sites."""
        return self.units.removed(self.keep)

    def settle(self, keep: Tensor) -> None:
        """The final choice is made: (U,) bool."""
        if not self.is_certain:
            self.keep, self.settled = keep, True

    @property
    def sparsity(self) -> float:
        """Fraction of the prunable parameters that goes."""
        return self.weights / self.units.numel

    @cached_property
    def scheduled(self) -> float:
        """Where the schedule ends: the budget's own sparsity, or the share of prunable parameters a shape removes."""
        return self.sparsity if self.budget.sparsity is None else self.budget.sparsity

    def due(self, line: Timeline, t: int) -> float:
        """Share of the goal that is to be reached at a step, 0 to 1: the schedule's sparsity then, over its last."""
        final = self.scheduled
        return round(line.target(t, final) / final, SHARE_DIGITS) if final else 0.0

    def in_words(self) -> str:
        """What stays, and whether scores decide on it."""
        left = self.units.in_words(self.units.counts(self.keep))
        if self.is_certain:
            return left
        share = f"{100 * self.budget.sparsity:g} % less {_QUANTITIES[self.budget.name]}"
        return f"{left} if all scores were equal; they decide what gives {share}"
