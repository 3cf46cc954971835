"""Fisher: units whose gates have a small mean squared gradient go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pat.pruning.gates import Evidence, Ranked, check_decay, moving_average


@dataclass(frozen=True)
class Fisher(Ranked):
    """S <- decay S + (1 - decay) mean over examples b of (dL_b/dz)^2: the diagonal of the empirical Fisher matrix.

    An example is a row of a micro-batch, L_b its own loss. Source: Kwon et al. 2022, arXiv:2204.09656.
    """

    name: str = "fisher"
    decay: float = 0.99  # decay of the running mean, per step; 0: only the current step counts

    needs: ClassVar[Evidence] = "squared_gradients"

    def __post_init__(self) -> None:
        """Refuse a decay that forgets nothing."""
        super().__post_init__()
        check_decay(self.decay)

    def update(self, score: Tensor, evidence: Tensor) -> Tensor:
        """The moving average of the mean (dL_b/dz)^2, (U,)."""
        return moving_average(score, evidence, self.decay)
