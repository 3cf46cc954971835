"""The settings that every calibrated method has, of single weights and of structures."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

RECONSTRUCT_LR = 1e-4


@dataclass(frozen=True)
class CalibrationSettings:
    """How much is measured, and whether layers are fitted after their cut."""

    num_samples: int = field(default=128, kw_only=True)  # calibration samples: the first that training sees
    reconstruct: int = field(default=0, kw_only=True)  # passes over the samples that refit each cut layer; 0: none
    reconstruct_lr: float = field(default=RECONSTRUCT_LR, kw_only=True)  # learning rate; lowered where it does not help

    def check(
        self,
        place: str,  # key of the method
    ) -> None:
        """ValueError for numbers that are none, and for a rate that would be ignored."""
        if self.num_samples < 1:
            raise ValueError(f"{place}.num_samples is {self.num_samples}, but must be at least 1: 128 are usual.")
        if self.reconstruct < 0:
            raise ValueError(f"{place}.reconstruct is {self.reconstruct}, but counts passes: at least 0.")
        if not 0.0 < self.reconstruct_lr < math.inf:
            raise ValueError(f"{place}.reconstruct_lr is {self.reconstruct_lr}, but is a learning rate: above 0.")
        if not self.reconstruct and self.reconstruct_lr != RECONSTRUCT_LR:
            raise ValueError(
                f"{place}.reconstruct_lr is {self.reconstruct_lr}, but would be ignored without passes over the "
                f"calibration samples: set {place}.reconstruct to 2 for example, or reconstruct_lr to {RECONSTRUCT_LR}."
            )
