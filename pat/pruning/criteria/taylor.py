"""Taylor: weights whose removal would change the loss least go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pat.pruning.criteria import Criterion


@dataclass(frozen=True)
class Taylor(Criterion):
    """S <- S - (1 - decay) * (S - |W * dL/dW'|), standing = S: the first-order change of the loss, averaged over steps.

    Source: Molchanov et al. 2016, arXiv:1611.06440; Molchanov et al. 2019, arXiv:1906.10771.
    """

    name: str = "taylor"
    decay: float = 0.99  # decay of the running mean, per step; 0: only the current step counts

    needs_score: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse an average that never moves."""
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"criterion.decay is {self.decay}, but must be at least 0 and below 1, for example 0.99.")

    def descent(self, score: Tensor, dense: Tensor, grad: Tensor, coef: Tensor | float) -> Tensor:
        """(1 - decay) * (S - |W * G|), (n,)."""
        return (score - (dense * grad).abs()) * (1.0 - self.decay)

    def rank(self, score: Tensor | None, dense: Tensor) -> Tensor:
        """S, (n,)."""
        assert score is not None
        return score
