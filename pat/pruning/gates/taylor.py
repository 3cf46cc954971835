"""Taylor: units without which the loss would hardly change go."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pat.pruning.gates import Ranked, check_decay, moving_average


@dataclass(frozen=True)
class Taylor(Ranked):
    """S <- decay S + (1 - decay) |dL/dz|: to first order, the change of the loss when an open gate closes.

    Source: Molchanov et al. 2019, arXiv:1906.10771.
    """

    name: str = "taylor"
    decay: float = 0.9

    def __post_init__(self) -> None:
        """Refuse a decay that forgets nothing."""
        super().__post_init__()
        check_decay(self.decay)

    def update(self, score: Tensor, evidence: Tensor) -> Tensor:
        """The moving average of |dL/dz|, (U,)."""
        return moving_average(score, evidence.abs(), self.decay)
