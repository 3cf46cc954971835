"""Soft movement: a threshold on the movement score, and a penalty that pushes scores under it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pat.pruning.criteria._evidence import Evidence


@dataclass(frozen=True)
class SoftMovement(Evidence):
    """S <- S - rate * W * dL/dW' - lambda(t) * sigma'(S), keep = sigma(S) > tau; sigma the logistic function.

    lambda(t) = final_lambda * progress ** ramp, so the penalty's gradient grows from 0 over the schedule. S starts at
    0, sigma(S) = 1/2: everything is kept until the penalty outweighs the evidence. A score drifts by up to lambda / 4
    a step; tau = 0.1 lies 2.2 below the start. W * dL/dW' of one weight is tiny (1e-6 is usual), so `rate` brings it to
    the scale of sigma. The final selection is by the budget, with standing
    S + c W^2: see `Evidence`.
    Source: Sanh et al. 2020, arXiv:2005.07683, section 4 (there S has an Adam of its own; here plain descent).
    """

    name: str = "soft_movement"
    tau: float = 0.1  # threshold on sigma(S), between 0 and 1/2
    rate: float = 1000.0  # factor of the evidence
    final_lambda: float = 0.02  # penalty at the end of the schedule, per step
    ramp: float = 3.0  # exponent of the penalty's growth

    needs_score: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse settings that prune everything at once or nothing ever, and an invalid prior."""
        super().__post_init__()
        if not 0.0 < self.tau < 0.5:
            raise ValueError(
                f"criterion.tau is {self.tau}, but must lie between 0 and 0.5: scores start at sigma(S) = 0.5."
            )
        if self.rate <= 0.0 or self.final_lambda < 0.0 or self.ramp < 0.0:
            raise ValueError(
                f"criterion soft_movement has rate {self.rate}, final_lambda {self.final_lambda} and ramp {self.ramp}, "
                "but the rate must be above 0 and the others at least 0."
            )

    @property
    def threshold(self) -> float | None:
        """logit(tau): sigma(S) > tau exactly where S > logit(tau), and S does not saturate."""
        return math.log(self.tau / (1.0 - self.tau))

    def coefficient(self, progress: float) -> float:
        """lambda(t)."""
        return self.final_lambda * progress**self.ramp if progress > 0.0 else 0.0

    def descent(self, score: Tensor, dense: Tensor, grad: Tensor, coef: Tensor | float) -> Tensor:
        """The evidence rate * W * G and the penalty lambda * sigma(S) * (1 - sigma(S)), (n,)."""
        return dense * grad * self.rate + logistic_slope(score) * coef

    def rank(self, score: Tensor | None, dense: Tensor) -> Tensor:
        """S, (n,)."""
        assert score is not None
        return score


def logistic_slope(x: Tensor) -> Tensor:
    """sigma'(x) = e / (1 + e)^2, e = exp(-|x|), to 1e-4 of itself for |x| < 5 and 1e-3 for |x| < 9.

    exp(a) = exp(a / 64)^64 with three terms of the series, because torch's own exp rounds an element by its place in
    the vector loop, and so by where a shard is cut.
    """
    y = x.abs() * (1.0 / 64.0)
    power = ((y * (1.0 / 6.0) + 0.5) * y + 1.0) * y + 1.0
    for _ in range(6):
        power = power.square()
    e = 1.0 / power
    return e / (e + 1.0).square()
