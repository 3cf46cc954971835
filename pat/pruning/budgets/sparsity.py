"""The budget that counts parameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True)
class Sparsity:
    """Fraction of the pruner's own parameters that is removed: s = removed / all, 0 <= s < 1.

    Source: Zhu & Gupta 2017, arXiv:1710.01878.
    """

    name: str = "sparsity"
    sparsity: float = field(kw_only=True)  # share to remove by the end of the schedule

    of_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse what cannot be reached."""
        if not 0.0 <= self.sparsity < 1.0:
            in_per_cent = 1.0 < self.sparsity < 100.0
            what_to_do = f"did you mean {self.sparsity / 100:g}?" if in_per_cent else "0.9 removes 90 %."
            raise ValueError(f"budget.sparsity is {self.sparsity}, but must be at least 0 and below 1: {what_to_do}")
