"""The ramps. u: progress from 0 at `start` to 1 at `end`; s_i, s_f: sparsity there."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from pat.pruning.schedules import Schedule


@dataclass(frozen=True)
class OneShot(Schedule):
    """s = s_f from `start` on; `end` may be null. Source: Han et al. 2015, arXiv:1506.02626."""

    name: str = "one_shot"
    end: int | float | None = field(default=None, kw_only=True)

    needs_end: ClassVar[bool] = False

    def ramp(self, u: float, initial: float, final: float) -> float:
        """s_f."""
        return final


@dataclass(frozen=True)
class Linear(Schedule):
    """s = s_i + (s_f - s_i) u. Source: Narang et al. 2017, arXiv:1704.05119."""

    name: str = "linear"

    def ramp(self, u: float, initial: float, final: float) -> float:
        """s_i + (s_f - s_i) u."""
        return initial + (final - initial) * u


@dataclass(frozen=True)
class Cubic(Schedule):
    """s = s_f + (s_i - s_f) (1 - u)^3: fast while much is redundant. Source: Zhu & Gupta 2017, arXiv:1710.01878."""

    name: str = "cubic"

    def ramp(self, u: float, initial: float, final: float) -> float:
        """s_f + (s_i - s_f) (1 - u)^3."""
        return final + (initial - final) * (1.0 - u) ** 3


@dataclass(frozen=True)
class Exponential(Schedule):
    """1 - s = (1 - s_i)^(1-u) (1 - s_f)^u: each step removes the same share of what is left.

    Source: Frankle & Carbin 2018, arXiv:1803.03635 (iterative pruning), with small steps.
    """

    name: str = "exponential"

    def ramp(self, u: float, initial: float, final: float) -> float:
        """1 - exp(log(1 - s_i) + (log(1 - s_f) - log(1 - s_i)) u), which rounding leaves monotone also near 0."""
        first, last = math.log1p(-initial), math.log1p(-final)
        return -math.expm1(first + (last - first) * u)


@dataclass(frozen=True)
class Stepwise(Schedule):
    """s = s_i + (s_f - s_i) floor(u L) / L: L equal jumps, the last at `end`. Source: Han et al., arXiv:1506.02626."""

    name: str = "stepwise"
    num_levels: int = field(kw_only=True)  # number of equal steps L

    def __post_init__(self) -> None:
        """Refuse a ramp without a jump."""
        if self.num_levels < 1:
            raise ValueError(f"schedule.num_levels is {self.num_levels}, but must be at least 1.")

    def ramp(self, u: float, initial: float, final: float) -> float:
        """s_i + (s_f - s_i) floor(u L) / L; the small addend absorbs the rounding of u."""
        return initial + (final - initial) * math.floor(u * self.num_levels + 1e-9) / self.num_levels
