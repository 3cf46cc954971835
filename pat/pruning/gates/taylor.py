"""Taylor: removes units without which the loss would hardly change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pat.pruning.gates import Evidence, Ranked, check_decay, moving_average


@dataclass(frozen=True)
class Taylor(Ranked):
    """S <- decay S + (1 - decay) mean over examples b of |dL_b/dz|.

    To first order, how much the loss L_b of an example changes when an open gate closes. An example is a row of a
    micro-batch. Source: Molchanov et al. 2019, arXiv:1906.10771 (there: of mini-batches, in which the gradients of
    examples cancel).
    """

    name: str = "taylor"
    decay: float = 0.9  # decay of the running mean, per step; 0: only the current step counts

    needs: ClassVar[Evidence] = "absolute_gradients"

    def __post_init__(self) -> None:
        """Refuse a decay that forgets nothing."""
        super().__post_init__()
        check_decay(self.decay)

    def update(self, score: Tensor, evidence: Tensor) -> Tensor:
        """The moving average of the mean |dL_b/dz|, (U,)."""
        return moving_average(score, evidence, self.decay)
