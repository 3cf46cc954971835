"""A straight line to the end of the run."""

from __future__ import annotations

from dataclasses import dataclass

from pat.learning_rates import LearningRate, Moment


@dataclass(frozen=True)
class Linear(LearningRate):
    """1 - s, s the share of the steps that are behind."""

    name: str = "linear"

    def at(self, moment: Moment) -> float:
        """From 1 at the end of the warm-up to 0 at the end of the run."""
        return 1.0 - moment.done
