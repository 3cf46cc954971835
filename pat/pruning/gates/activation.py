"""Activation norm: units that put out little go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pat.pruning.gates import Evidence, Ranked, check_decay, moving_average


@dataclass(frozen=True)
class Activation(Ranked):
    """S <- decay S + (1 - decay) mean over tokens of ||x_u||^2, x_u the unit's output before its gate.

    Source: Muralidharan et al. 2024 (Minitron), arXiv:2407.14679.
    """

    name: str = "activation"
    decay: float = 0.9  # decay of the running mean, per step; 0: only the current step counts

    needs: ClassVar[Evidence] = "activations"
    comparable: ClassVar[bool] = False  # scores of heads and of neurons are not on one scale

    def __post_init__(self) -> None:
        """Refuse a decay that forgets nothing."""
        super().__post_init__()
        check_decay(self.decay)

    def update(self, score: Tensor, evidence: Tensor) -> Tensor:
        """The moving average of the mean squared norm, (U,)."""
        return moving_average(score, evidence, self.decay)
