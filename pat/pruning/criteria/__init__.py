"""Criteria: evidence -> one fp32 score per weight, higher = keep. One file for each criterion.

All methods are pure and elementwise over a flat shard (or any piece of one), so that `weights.kernels` can fuse
them, run them chunk by chunk, and get the same bits either way. That also asks for operations that IEEE 754 rounds
exactly (+, -, *, /, abs, sqrt, comparisons): torch's exp or log of an element depends on its place in the tensor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from pat.pruning.calibration.settings import CalibrationSettings
from pat.pruning.calibration.statistics import InputStatistic


@dataclass(frozen=True)
class Place:
    """Where a piece of a parameter lies, and in which run."""

    name: str  # of the parameter
    shape: tuple[int, ...]  # of it, as stored
    start: int  # row-major index in it of the piece's first element
    seed: int  # of the run


@dataclass(frozen=True)
class Criterion(ABC):
    """The contract, with the defaults of a criterion that needs no history."""

    # n elements of a flat shard
    name: str

    needs_score: ClassVar[bool] = False  # whether an fp32 score per weight is kept as state

    @property
    def threshold(self) -> float | None:
        """In the soft phase keep = standing > threshold; None: the budget's share with the highest standings."""
        return None

    def coefficient(self, progress: float) -> float:
        """What `update` gets as `coef` at this progress of the schedule (0 at its start, 1 from its end on)."""
        return 0.0

    def initial(self, dense: Tensor) -> Tensor:
        """The score before any evidence, (n,) fp32: 0, or what is known of the weights (n,) fp32 themselves."""
        return torch.zeros_like(dense)

    def prior_weight(
        self,
        num_steps: int,  # of evidence that the score holds
    ) -> float:
        """How much W^2 adds to the standing, relative to the score's size (see `weights.prior`); 0: nothing."""
        return 0.0

    @property
    def prior_samples(self) -> int:
        """Samples on which to measure the inputs that weight W^2 in the prior; 0: W^2 alone."""
        return 0

    def descent(
        self,
        score: Tensor,  # (n,) fp32
        dense: Tensor,  # (n,) fp32, weights before this step, at masked positions too
        grad: Tensor,  # (n,) fp32, gradient of the effective weights, at masked positions too
        coef: Tensor | float,  # () this step's `coefficient`
    ) -> Tensor:  # (n,) fp32
        """What this step's evidence takes off the score, S <- S - descent(S, W, G)."""
        raise NotImplementedError(f"{type(self).__name__} must define descent, or not need a score")

    def update(self, score: Tensor, dense: Tensor, grad: Tensor, coef: Tensor | float) -> Tensor:
        """The score after this step's evidence, (n,) fp32; the score itself if the criterion keeps none."""
        return score - self.descent(score, dense, grad, coef) if self.needs_score else score

    @abstractmethod
    def rank(
        self,
        score: Tensor | None,  # (n,) fp32; None unless `needs_score`
        dense: Tensor,  # (n,) fp32
    ) -> Tensor:  # (n,) fp32
        """The standing of each weight, by which the selection sorts."""

    def rank_at(
        self,
        place: Place,
        score: Tensor | None,  # (n,) fp32
        dense: Tensor,  # (n,) fp32
    ) -> Tensor:  # (n,) fp32
        """`rank` of one piece of one parameter, for criteria that depend on where it lies."""
        return self.rank(score, dense)


# o outputs and i inputs of a linear map


@dataclass(frozen=True)
class Calibrated(CalibrationSettings, Criterion):
    """A criterion that looks at what goes into a matrix, and may change the weights that stay; one matrix at a time.

    A cut sees the weights that are in force, so what an earlier cut of the run removed is 0 and stays so."""

    gradient_samples: int = field(default=0, kw_only=True)  # whole forwards; how much the loss feels each output
    gradient_labels: int = field(default=0, kw_only=True)  # more of the samples, until so many labels are in them

    statistics: ClassVar[tuple[type[InputStatistic], ...]]  # of what goes into each matrix
    fits: ClassVar[bool] = True  # a cut may change the weights that stay

    def __post_init__(self) -> None:
        """Refuse to calibrate on nothing."""
        self.check("criterion")
        for key, value in (("samples", self.gradient_samples), ("labels", self.gradient_labels)):
            if value < 0:
                raise ValueError(f"criterion.gradient_{key} is {value}, but must be at least 0, for none.")

    @property
    def follows(self) -> bool:
        """Whether the walk also runs the model as it was before the cut."""
        return self.reconstruct > 0

    def prepare(
        self,
        inputs: Mapping[type[InputStatistic], Tensor],  # means over the tokens
    ) -> Any:
        """What all matrices with these inputs share, once for all of them; the tensors may be changed for it."""
        return inputs

    @abstractmethod
    def cut(
        self,
        weights: Tensor,  # (o, i) fp32, which may be changed
        prepared: Any,  # by `prepare`
        choose: Callable[[Tensor], Tensor],  # scores (o, i) fp32, higher = keep -> flags (o, i) bool, to the target
    ) -> tuple[Tensor, Tensor]:
        """(flags (o, i) bool from `choose`, the weights (o, i) with what was removed at 0)."""

    def cut_bytes(self, outputs: int, inputs: int) -> int:
        """Bytes that one cut holds besides its statistics: weights, scores, flags, and those of the choice."""
        return 9 * outputs * inputs + choice_bytes(outputs, inputs)

    def cut_flops(self, outputs: int, inputs: int) -> float:
        """About how many floating-point operations one cut takes, at most, in fp32; here next to none."""
        return 0.0

    def rank(self, score: Tensor | None, dense: Tensor) -> Tensor:
        """Single weights have no standing without what goes into their matrix."""
        raise NotImplementedError(f"{self.name} ranks whole matrices: see `cut`")


CHOICE = 1 << 22  # scores that a choice works on at a time


def choice_bytes(outputs: int, inputs: int) -> int:
    """What `choose` takes beside scores and flags: a part of the scores sorted with their places, or copied."""
    return 13 * min(CHOICE, outputs * inputs) + outputs * inputs // 4
