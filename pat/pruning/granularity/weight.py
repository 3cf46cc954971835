"""Single weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from pat.common.comm import Comm
from pat.common.rounding import part_of
from pat.pruning.scopes import Scope
from pat.pruning.types import Granularity, ScoredSegment
from pat.pruning.weights.selection import keep_above, select_units


@dataclass(frozen=True, kw_only=True)
class Weight(Granularity):
    """Every weight by itself."""

    name: str = "weight"

    single: ClassVar[bool] = True

    def pruned_units(self, shapes: Mapping[str, tuple[int, ...]], sparsity: float, scope: Scope) -> int:
        """Weights that this target removes; in a scope of rows, sparsity * (weights of a row) from each, rounded half
        up."""
        if scope.of_rows:
            return sum(prod(shape[:-1]) * part_of(shape[-1], sparsity) for shape in shapes.values())
        return super().pruned_units(shapes, sparsity, scope)

    def select(self, segments: Sequence[ScoredSegment], sparsity: float, scope: Scope, comm: Comm) -> None:
        """Remove the lowest scores. Collective."""
        select_units(segments, sparsity, scope, comm)

    def select_threshold(self, segments: Sequence[ScoredSegment], threshold: float, comm: Comm) -> None:
        """Write keep = score > threshold. Collective."""
        keep_above(segments, threshold, comm)
