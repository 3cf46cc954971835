"""What a calibrated pruner measures, for whoever binds, announces or plans it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pat.pruning.calibration.statistics import InputStatistic


@dataclass(frozen=True)
class Needs:
    """Of one pruner."""

    key: str  # of its method: pruners.NAME.criterion
    num_samples: int
    shapes: Mapping[str, tuple[int, ...]]  # (outputs, inputs) of the matrices whose inputs are measured
    statistics: tuple[type[InputStatistic], ...]  # of each
    cut_bytes: Callable[[int, int], int]  # (outputs, inputs) -> what one cut holds beside the statistics
    follows: bool = False  # whether the model before the cut is walked along

    @property
    def widest(self) -> str:
        """The matrix with the most inputs."""
        return max(self.shapes, key=lambda name: self.shapes[name][1])
