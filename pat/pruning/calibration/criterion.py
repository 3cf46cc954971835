"""Criteria that look at what goes into a matrix: whole matrices, one at a time, and their weights may change.

# o outputs and i inputs of a linear map
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from pat.pruning.calibration.statistics import InputStatistic
from pat.pruning.criteria import Criterion


@dataclass(frozen=True)
class Calibrated(Criterion):
    """The contract. A cut sees the weights that are in force, so what an earlier cut removed is 0 and stays so."""

    num_samples: int = field(default=128, kw_only=True)  # to calibrate on: the first ones that training sees

    statistics: ClassVar[tuple[type[InputStatistic], ...]]  # of what goes into each matrix

    @abstractmethod
    def cut(
        self,
        weights: Tensor,  # (o, i) fp32
        inputs: Mapping[type[InputStatistic], Tensor],  # means over the tokens
        choose: Callable[[Tensor], Tensor],  # scores (o, i) fp32, higher = keep -> flags (o, i) bool, to the target
    ) -> tuple[Tensor, Tensor]:
        """(flags (o, i) bool from `choose`, the weights (o, i) with what was removed at 0)."""

    def rank(self, score: Tensor | None, dense: Tensor) -> Tensor:
        """There is no rank of single weights without what goes into their matrix."""
        raise NotImplementedError(f"{self.name} ranks whole matrices: see `cut`")
