"""Movement: weights that training pushes towards zero go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pat.pruning.criteria._evidence import Evidence


@dataclass(frozen=True)
class Movement(Evidence):
    """S <- S - W * dL/dW', W' = W * M, at masked weights too; standing = S + c W^2, top-v by the budget.

    This is gradient descent on S through the straight-through mask, dL/dS = dL/dW' * W, at rate 1; the rate does not
    change the order. c: see `Evidence`.
    Source: Sanh et al. 2020, arXiv:2005.07683; the prior is our own.
    """

    name: str = "movement"

    needs_score: ClassVar[bool] = True

    def descent(self, score: Tensor, dense: Tensor, grad: Tensor, coef: Tensor | float) -> Tensor:
        """W * G, (n,)."""
        return dense * grad

    def rank(self, score: Tensor | None, dense: Tensor) -> Tensor:
        """S, (n,)."""
        assert score is not None
        return score
