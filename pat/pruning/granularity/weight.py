"""Single weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from pat.common.comm import Comm
from pat.common.rounding import part_of
from pat.pruning.scopes import Scope
from pat.pruning.types import ScoredSegment
from pat.pruning.weights.selection import keep_above, select_units


@dataclass(frozen=True, kw_only=True)
class Weight:
    """Every weight by itself."""

    name: str = "weight"

    oriented: ClassVar[bool] = False  # whether a transposed weight would be cut along the wrong dimension

    @property
    def weights_per_unit(self) -> int:
        """1: a unit is a single weight."""
        return 1

    def validate(self, name: str, shape: tuple[int, ...]) -> None:
        """Any parameter will do."""

    def validate_target(self, sparsity: float) -> None:
        """Any sparsity will do."""

    def reachable(self, sparsity: float) -> float:
        """Of each parameter, up to a whole unit: the sparsity itself."""
        return sparsity

    def num_units(self, shape: tuple[int, ...]) -> int:
        """Weights of a parameter."""
        return prod(shape)

    def pruned_units(self, shapes: Mapping[str, tuple[int, ...]], sparsity: float, scope: Scope) -> int:
        """Weights that this target removes; in a scope of rows, sparsity * (weights of a row) from each, rounded half
        up."""
        if scope.of_rows:
            return sum(prod(shape[:-1]) * part_of(shape[-1], sparsity) for shape in shapes.values())
        return sum(scope.pruned({name: self.num_units(shape) for name, shape in shapes.items()}, sparsity).values())

    def select(self, segments: Sequence[ScoredSegment], sparsity: float, scope: Scope, comm: Comm) -> None:
        """Remove the lowest scores. Collective."""
        select_units(segments, sparsity, scope, comm)

    def select_threshold(self, segments: Sequence[ScoredSegment], threshold: float, comm: Comm) -> None:
        """Write keep = score > threshold. Collective."""
        keep_above(segments, threshold, comm)
