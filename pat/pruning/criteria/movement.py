"""Movement: weights that training pushes towards zero go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pat.pruning.criteria import Criterion


@dataclass(frozen=True)
class Movement(Criterion):
    """S <- S - W * dL/dW', W' = W * M, at masked weights too; rank = S, top-v by the budget.

    This is gradient descent on S through the straight-through mask, dL/dS = dL/dW' * W, at rate 1; the rate does not
    change the order. S starts at prior * W^2. 0 is the paper's start, where the first selections rank little but noise
    and so remove important weights too: right for many thousand steps. In a few hundred, start from the magnitude
    (prior 1) and let the evidence correct it. Source: Sanh et al. 2020, arXiv:2005.07683.
    """

    name: str = "movement"
    prior: float = 0.0  # of the squared weight

    needs_score: ClassVar[bool] = True

    def initial(self, dense: Tensor) -> Tensor:
        """S_0 = prior * W^2, (n,)."""
        return dense * dense * self.prior

    def descent(self, score: Tensor, dense: Tensor, grad: Tensor, coef: Tensor | float) -> Tensor:
        """W * G, (n,)."""
        return dense * grad

    def rank(self, score: Tensor | None, dense: Tensor) -> Tensor:
        """S, (n,)."""
        assert score is not None
        return score
