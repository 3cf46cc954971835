"""What criteria share whose score is the evidence of training steps: the magnitude counts beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from pat.common.text import did_you_mean
from pat.pruning.criteria import Criterion

PRIOR_STEPS = 20000.0
NUM_SAMPLES = 128
PRIOR_SCORES = ("magnitude", "wanda")


@dataclass(frozen=True)
class Evidence(Criterion):
    """standing = S + c W^2, wherever the budget ranks.

    S of a few hundred steps is mostly noise, and sensitive weights have large scores of either sign, so the magnitude
    counts beside it: at step t the two terms have sizes prior_steps / t : 1, the mean of c W^2 and the RMS of S over
    what is ranked together. A number as `prior` is c itself, in S from the start; 0 is the method as published. With
    prior_score=wanda W^2 counts by the size of its input, W_oi^2 E[x_i^2] / mean_j E[x_j^2], which is measured on
    training samples before the first selection (`weights.prior`).
    Source: Wanda: Sun et al. 2023, arXiv:2306.11695; the prior is our own.
    """

    prior: float | None = field(default=None, kw_only=True)  # c, the weight of W^2; null: from the sizes of S and W^2
    prior_steps: float = field(default=PRIOR_STEPS, kw_only=True)  # steps that count as W^2 does, where prior is null
    prior_score: str = field(default="magnitude", kw_only=True)  # magnitude: W^2 | wanda: by the size of its inputs
    num_samples: int = field(default=NUM_SAMPLES, kw_only=True)  # samples of prior_score=wanda, the first seen

    def __post_init__(self) -> None:
        """Refuse an invalid prior, and a prior_steps that a constant prior would ignore."""
        if self.prior is not None and self.prior_steps != PRIOR_STEPS:
            raise ValueError(
                f"criterion.prior is {self.prior}, a constant, but then criterion.prior_steps={self.prior_steps} would "
                "be ignored: leave one of them out."
            )
        if not 0.0 < self.prior_steps < math.inf or not 0.0 <= (self.prior or 0.0) < math.inf:
            raise ValueError(
                f"criterion {self.name} has prior {self.prior} and prior_steps {self.prior_steps}, but the first must "
                "be at least 0 or null, and the second above 0; prior=0 is the method as published."
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
