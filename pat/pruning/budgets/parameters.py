"""The budget that counts the parameters of a smaller model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pat.models.anatomy import Anatomy
from pat.pruning.budgets import StructureBudget
from pat.pruning.structures.costs import Cost, parameters


@dataclass(frozen=True)
class Parameters(StructureBudget):
    """Fraction of all parameters of the model, embeddings and heads included, tied ones once.

    Source: CoFi's expected sparsity, Xia et al. 2022, arXiv:2204.00408, there without embeddings.
    """

    name: str = "parameters"

    unit: ClassVar[str] = "parameters"

    def cost(self, anatomy: Anatomy) -> Cost:
        """Parameters."""
        return parameters(anatomy)
