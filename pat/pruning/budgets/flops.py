"""The budget that counts FLOPs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from pat.models.anatomy import Anatomy
from pat.pruning.budgets import StructureBudget
from pat.pruning.structures.costs import Cost, flops


@dataclass(frozen=True)
class Flops(StructureBudget):
    """Fraction of the FLOPs of one forward over seq_len tokens, all matrix products of the model.

    2 per multiply-add: 2 s inputs outputs of a projection, 4 s^2 h d of an attention (s tokens, h query heads of
    dimension d: full s x s products); embedding lookups 0 (pat.pruning.structures.costs.flops).
    """

    name: str = "flops"
    seq_len: int = field(kw_only=True)  # length of the sequences whose FLOPs count, in tokens

    unit: ClassVar[str] = "FLOPs"

    def __post_init__(self) -> None:
        """Refuse an empty sequence."""
        super().__post_init__()
        if self.seq_len < 1:
            raise ValueError(f"budget.seq_len is {self.seq_len}, but must be at least 1 token.")

    def cost(self, anatomy: Anatomy) -> Cost:
        """FLOPs of a sequence."""
        return flops(anatomy, self.seq_len)
