"""Half a cosine to the end of the run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pat.learning_rates import LearningRate, Moment


@dataclass(frozen=True)
class Cosine(LearningRate):
    """(1 + cos pi s) / 2, s the share of the steps that are behind (Loshchilov & Hutter 2017, arXiv:1608.03983)."""

    name: str = "cosine"

    def at(self, moment: Moment) -> float:
        """From 1 at the end of the warm-up to 0 at the end of the run."""
        return 0.5 * (1.0 + math.cos(math.pi * moment.done))
