"""Similarity: removes layers whose output hardly differs from their input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pat.pruning.gates import Evidence, Ranked, check_decay, moving_average


@dataclass(frozen=True)
class Similarity(Ranked):
    """S <- decay S + (1 - decay) mean over tokens of 1 - cos(input, output) of the block. For `layers` only.

    Source: ShortGPT's block influence, Men et al. 2024, arXiv:2403.03853.
    """

    name: str = "similarity"
    decay: float = 0.9  # decay of the running mean, per step; 0: only the current step counts

    needs: ClassVar[Evidence] = "similarity"
    pooled_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse a decay that forgets nothing."""
        super().__post_init__()
        check_decay(self.decay)

    def update(self, score: Tensor, evidence: Tensor) -> Tensor:
        """The moving average of 1 - cos, (U,)."""
        return moving_average(score, evidence, self.decay)
