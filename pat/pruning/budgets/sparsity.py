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
            raise ValueError(
                f"budget.sparsity is {self.sparsity}, but must be at least 0 and below 1: 0.9 removes 90 %."
            )
