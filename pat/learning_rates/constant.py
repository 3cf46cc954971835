"""No decay."""

from __future__ import annotations

from dataclasses import dataclass

from pat.learning_rates import LearningRate, Moment


@dataclass(frozen=True)
class Constant(LearningRate):
    """1 at every step."""

    name: str = "constant"

    def at(self, moment: Moment) -> float:
        """1."""
        return 1.0
