"""Movement: weights that training pushes towards zero go."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pat.common.text import did_you_mean
from pat.pruning.criteria import Criterion

PRIOR_STEPS = 20000.0
NUM_SAMPLES = 128
PRIOR_SCORES = ("magnitude", "wanda")


@dataclass(frozen=True)
class Movement(Criterion):
    """S <- S - W * dL/dW', W' = W * M, at masked weights too; standing = S + c W^2, top-v by the budget.

    This is gradient descent on S through the straight-through mask, dL/dS = dL/dW' * W, at rate 1; the rate does not
    change the order. S of a few hundred steps is mostly noise, and sensitive weights have large scores of either sign,
    so the magnitude counts beside it: at step t the two terms have sizes prior_steps / t : 1, the mean of c W^2 and the
    RMS of S over what is ranked together. A number as `prior` is c itself; 0 is the method as published.
    With prior_score=wanda W^2 counts by the size of its input, W_oi^2 E[x_i^2] / mean_j E[x_j^2], which is measured on
    training samples before the first selection (`weights.prior`).
    Source: Sanh et al. 2020, arXiv:2005.07683; Wanda: Sun et al. 2023, arXiv:2306.11695; the prior is our own.
    """

    name: str = "movement"
    prior: float | None = None  # c, the weight of the magnitude; null: from the sizes of S and W^2
    prior_steps: float = PRIOR_STEPS  # steps of evidence that count as much as the magnitude, where prior is null
    prior_score: str = "magnitude"  # magnitude: W^2 | wanda: W^2 by the size of its inputs
    num_samples: int = NUM_SAMPLES  # calibration samples of prior_score=wanda: the first that training sees

    needs_score: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse an invalid prior, and a prior_steps that a constant prior would ignore."""
        if self.prior is not None and self.prior_steps != PRIOR_STEPS:
            raise ValueError(
                f"criterion.prior is {self.prior}, a constant, but then criterion.prior_steps={self.prior_steps} would "
                "be ignored: leave one of them out."
            )
        if not 0.0 < self.prior_steps < math.inf or not 0.0 <= (self.prior or 0.0) < math.inf:
            raise ValueError(
                f"criterion movement has prior {self.prior} and prior_steps {self.prior_steps}, but the first must be "
                "at least 0 or null, and the second above 0; prior=0 is the method as published."
            )
        if self.prior_score not in PRIOR_SCORES:
            raise ValueError(
                f"criterion.prior_score is {self.prior_score!r}, but must be {' or '.join(PRIOR_SCORES)}"
                f"{did_you_mean(self.prior_score, PRIOR_SCORES)}."
            )
        if self.prior_score == "magnitude" and self.num_samples != NUM_SAMPLES:
            raise ValueError(
                f"criterion.num_samples is {self.num_samples}, but would be ignored: set criterion.prior_score=wanda, "
                "or leave it out."
            )
        if self.prior_score == "wanda" and (self.prior is not None or self.num_samples < 1):
            raise ValueError(
                f"criterion.prior_score is wanda with prior {self.prior} and num_samples {self.num_samples}, but then "
                "prior must be null (its weight follows from the sizes of both), and num_samples at least 1."
            )

    def initial(self, dense: Tensor) -> Tensor:
        """S_0 = prior * W^2, (n,)."""
        return dense * dense * (self.prior or 0.0)

    def prior_weight(self, num_steps: int) -> float:
        """prior_steps / t, or 0 where `prior` is a constant."""
        return self.prior_steps / max(num_steps, 1) if self.prior is None else 0.0

    @property
    def prior_samples(self) -> int:
        """Those of prior_score=wanda."""
        return self.num_samples if self.prior_score == "wanda" else 0

    def descent(self, score: Tensor, dense: Tensor, grad: Tensor, coef: Tensor | float) -> Tensor:
        """W * G, (n,)."""
        return dense * grad

    def rank(self, score: Tensor | None, dense: Tensor) -> Tensor:
        """S, (n,)."""
        assert score is not None
        return score
