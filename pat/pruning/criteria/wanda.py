"""Wanda: weights that are small, or that multiply small inputs, go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pat.pruning.calibration.statistics import NOTHING_GOES_IN, InputStatistic, SquaredNorm
from pat.pruning.criteria import Calibrated


@dataclass(frozen=True)
class Wanda(Calibrated):
    """standing = |W_oi| sqrt(mean_n x_ni^2), x the inputs on calibration samples; the weights that stay are not
    changed.

    The paper ranks within each output: scope=row. Source: Sun et al. 2023, arXiv:2306.11695.
    """

    name: str = "wanda"

    statistics: ClassVar[tuple[type[InputStatistic], ...]] = (SquaredNorm,)
    fits: ClassVar[bool] = False

    def prepare(self, inputs: Mapping[type[InputStatistic], Tensor]) -> Mapping[type[InputStatistic], Tensor]:
        """The inputs as they are. ValueError where all are 0, so that no weight is lower than another."""
        if not bool((inputs[SquaredNorm] > 0).any()):
            raise ValueError(NOTHING_GOES_IN)
        return inputs

    def cut(
        self, weights: Tensor, prepared: Mapping[type[InputStatistic], Tensor], choose: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Remove the lowest; the weights that stay are unchanged. Those that are 0 already go first: those of a dead
        input score as low, and what an earlier cut has removed must not come back in their place."""
        scores = weights.abs().mul_(prepared[SquaredNorm].sqrt().float())
        below = -float(scores.max()) * 2.0**-20  # all others, and next to nothing in the sum of a block
        keep = choose(scores.masked_fill_(weights == 0, below))
        return keep, weights.mul_(keep)
