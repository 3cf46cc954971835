"""Scopes: what is ranked together, and so meets the target together. One file a scope."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, cast

from pat.common import scan
from pat.common.rounding import part_of


@dataclass(frozen=True)
class Scope(ABC):
    """Puts matrices into groups. Of the n units of a group, sparsity * n (rounded half up) go, those that stand lowest.

    Whether each matrix is a group of its own (`apart`) decides what can choose in the scope: a criterion that is
    calibrated cuts one matrix after the other, and compares them only by what the loss says, in the whole model.
    """

    name: str

    apart: ClassVar[bool] = False  # each matrix is a group
    of_rows: ClassVar[bool] = False  # or each of its outputs is one, for single weights only

    @abstractmethod
    def group(self, matrix: str) -> str:
        """The group of a parameter: those with the same answer are ranked together."""

    def totals(self, units: Mapping[str, int]) -> dict[str, int]:
        """The units of each group, given those of each parameter."""
        found = Counter[str]()
        for name, number in units.items():
            found[self.group(name)] += number
        return dict(found)

    def pruned(self, units: Mapping[str, int], sparsity: float) -> dict[str, int]:
        """The units that go from each group, given those of each parameter."""
        return {group: part_of(number, sparsity) for group, number in self.totals(units).items()}


@cache
def classes() -> Mapping[str, type[Scope]]:
    """Every scope, by name, sorted."""
    return cast(Mapping[str, type[Scope]], scan.named_classes(__name__, "scopes"))


def build(name: str) -> Scope:
    """The scope of that name; ValueError where there is none."""
    if name not in classes():
        raise ValueError(f"there is no scope called {name!r}: allowed are {', '.join(classes())}")
    return classes()[name](name)
