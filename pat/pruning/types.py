"""The few nouns that selection, masks, shards and checkpoints share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from torch import Tensor

from pat.common.comm import Comm
from pat.pruning.scopes import Scope


class PromiseBroken(RuntimeError):
    """Something pat guarantees does not hold: a target missed, a pruned weight that is not zero."""


@dataclass(frozen=True)
class ScoredSegment:
    """The scores of a contiguous run of one parameter's units, and the flags to write; each unit is in one of them.

    The units are single weights, or blocks (then `shape` and `start` count blocks).
    """

    name: str
    shape: tuple[int, ...]
    start: int  # first unit: row-major index in the parameter
    scores: Tensor  # (n,) fp32, a view
    keep: Tensor  # (n,) uint8, a view: written by the selection, 1 = the weight survives

    @property
    def numel(self) -> int:
        """Elements in the segment."""
        return self.scores.numel()


@dataclass(frozen=True, kw_only=True)
class Granularity(ABC):
    """Cuts matrices into units, each of which is kept or removed as one, and chooses among them.

    Masks do not depend on the number of ranks or on where they cut the parameters.
    """

    name: str

    single: ClassVar[bool] = False  # a unit is any one weight, so that each output can rank its own
    oriented: ClassVar[bool] = False  # units run along the inputs: the weight has to be stored as (out, in)
    competing: ClassVar[bool] = True  # units of a scope compete; False: small groups meet the target, each by itself
    faster_where: ClassVar[str] = "skips zeros"  # what a runtime has to do for the zeros to save time

    def describe(self, scope: Scope) -> str:
        """How the choice is made, for the lines that a run starts with."""
        return f"granularity {self.name}, scope {scope.name}"

    def validate(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise ValueError for a matrix that cannot be cut into units. Any can, unless a granularity says else."""
        return

    def validate_target(self, sparsity: float) -> None:
        """Raise ValueError for a sparsity in [0, 1] that the units cannot reach. Any will do, unless one says else."""
        return

    def reachable(self, sparsity: float) -> float:
        """What of a sparsity on the way to the target is removed of each parameter, up to a whole unit."""
        return sparsity

    @property
    def weights_per_unit(self) -> int:
        """Weights that live or die together."""
        return 1

    def num_units(self, shape: tuple[int, ...]) -> int:
        """Units of a parameter."""
        return prod(shape) // self.weights_per_unit

    def pruned_units(self, shapes: Mapping[str, tuple[int, ...]], sparsity: float, scope: Scope) -> int:
        """Units that exactly this target removes, over all parameters."""
        return sum(scope.pruned({name: self.num_units(shape) for name, shape in shapes.items()}, sparsity).values())

    @abstractmethod
    def select(self, segments: Sequence[ScoredSegment], sparsity: float, scope: Scope, comm: Comm) -> None:
        """Write keep, exactly to that target: the units that stand lowest go. Collective."""

    @abstractmethod
    def select_threshold(self, segments: Sequence[ScoredSegment], threshold: float, comm: Comm) -> None:
        """Write keep = score > threshold; ValueError where that makes no whole units. Collective."""
