"""Weights over all pruners of a run, each counted once, also where masks and gates share a parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pat.pruning import nested
from pat.pruning.structures.pruner import StructurePruner
from pat.pruning.weights.pruner import WeightPruner


@dataclass(frozen=True)
class Totals:
    """Computed on demand from the pruners' current state. Without pruners all are 0."""

    weight_pruners: Sequence[WeightPruner]
    structure_pruners: Sequence[StructurePruner]

    @property
    def numel(self) -> int:
        """Prunable weights over all ranks; those that masks and gates share count once."""
        return sum(p.numel for p in self._all) - sum(nested.numel(*pair) for pair in self._pairs)

    @property
    def num_pruned(self) -> int:
        """Weights removed, over all ranks."""
        return sum(p.num_pruned for p in self._all) - sum(nested.num_pruned(*pair) for pair in self._pairs)

    @property
    def sparsity(self) -> float:
        """Fraction removed of all prunable weights, counted."""
        return self._fraction(self.num_pruned)

    @property
    def exported(self) -> float:
        """Fraction that an export of this step lacks: structures are whole until their gates harden."""
        hardened = [p for p in self.structure_pruners if p.hardened]
        return self._fraction(Totals(self.weight_pruners, hardened).num_pruned)

    @property
    def target(self) -> float:
        """Fraction of all prunable weights that the budgets ask to remove; where scores decide on a shape, see Goal."""
        both = sum(nested.target_weights(*pair) for pair in self._pairs)
        return self._fraction(sum(p.target_weights for p in self._all) - both)

    def target_now(self, targets: Mapping[str, float]) -> float:
        """Fraction of all prunable weights that is to be removed at a step, from every pruner's own target then."""
        both = sum(
            nested.target_weights(structures, weights) * targets[weights.name] * weights.numel / weights.target_weights
            for structures, weights in self._pairs
            if structures.hardened and weights.target_weights
        )
        return self._fraction(sum(targets[p.name] * p.numel for p in self._all) - both)

    @property
    def _all(self) -> list[WeightPruner | StructurePruner]:
        return [*self.weight_pruners, *self.structure_pruners]

    @property
    def _pairs(self) -> list[tuple[StructurePruner, WeightPruner]]:
        return [(structures, weights) for structures in self.structure_pruners for weights in self.weight_pruners]

    def _fraction(self, weights: float) -> float:
        return weights / self.numel if self._all else 0.0
