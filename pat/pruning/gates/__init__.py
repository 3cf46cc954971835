"""Gates: how the factors on structures (heads, KV groups, neurons, layers) come to be 0 or 1. One file for each method.

A `Ranked` method turns evidence into a score per unit; the budget's flags follow from the scores, and gates fade
towards them. A `Learned` method trains the keep probability of every unit on the surface where the expected cost of the
model is at its target; the order of these probabilities is what the budget chooses by in the end. A `CalibratedGate`
needs no training: it cuts once, by what goes into the consuming matrices, and fits the weights that stay.

# U units, over all sites of a pruner; u of one site, whose consuming matrix has o outputs and i inputs
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pat.pruning.calibration.gap import Gap
from pat.pruning.calibration.settings import CalibrationSettings
from pat.pruning.calibration.statistics import InputStatistic

# gradient: dL/dz of the global batch; squared_, absolute_: the mean over its examples of their own gradient's;
# gradient_and_size: (2, U), the first and the third; weights: the mean square; activations, similarity,
# similarity_of_pairs: means over the tokens that are not padding; inputs: of the consuming matrices, in a walk over the
# layers
Evidence = Literal[
    "gradient", "squared_gradients", "absolute_gradients", "gradient_and_size", "weights", "activations", "similarity",
    "similarity_of_pairs", "inputs",
]  # fmt: skip
BY_GRADIENT: tuple[Evidence, ...] = ("gradient", "squared_gradients", "absolute_gradients", "gradient_and_size")
STATISTICS: tuple[Evidence, ...] = ("activations", "similarity", "similarity_of_pairs")
OF_NO_STEP: tuple[Evidence, ...] = ("weights", "inputs")  # taken where units are chosen


@dataclass(frozen=True)
class GateMethod:
    """What every method says of itself: the evidence that it needs, and which structures it is for."""

    name: str = ""

    needs: ClassVar[Evidence] = "gradient"
    pooled_only: ClassVar[bool] = False  # for whole layers only,
    fewest: ClassVar[int] = 1  # and so many of them or more
    comparable: ClassVar[bool] = True  # scores of different structures are in one currency


@dataclass(frozen=True)
class Ranked(GateMethod, ABC):
    """A score per unit, higher = keep, from the evidence of a step."""

    fade: int = field(default=10, kw_only=True)  # steps over which a gate moves from 1 to 0, or back

    def __post_init__(self) -> None:
        """Refuse a fade of less than one step."""
        if self.fade < 1:
            raise ValueError(f"gate.fade is {self.fade}, but must be at least 1: 1 closes a gate at once.")

    @abstractmethod
    def update(
        self,
        score: Tensor,  # (U,) fp32
        evidence: Tensor,  # (U,) fp32: what `needs` says, of this step and all ranks
    ) -> Tensor:  # (U,) fp32
        """The score after a step's evidence."""


@dataclass(frozen=True)
class Averaged(Ranked):
    """S <- decay S + (1 - decay) E, the running mean of the evidence E."""

    decay: float = 0.9  # decay of the running mean, per step; 0: only the current step counts

    def __post_init__(self) -> None:
        """Refuse a decay that forgets nothing."""
        super().__post_init__()
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(
                f"gate.decay is {self.decay}, but must be at least 0 and below 1: 0 looks at the last step only."
            )

    def update(self, score: Tensor, evidence: Tensor) -> Tensor:
        """The running mean with a step's evidence, (U,)."""
        return torch.lerp(evidence, score, self.decay)


@dataclass(frozen=True)
class Learned(GateMethod, ABC):
    """A parameter a per unit, the logit of its keep probability, trained under the budget (structures.lagrangian).

    The formulas take a / T. T is 1 until the last quarter of the soft phase and then falls to `temperature`: gates go
    to 0 or 1, in the same order.
    """

    lr: float = field(default=0.03, kw_only=True)  # how far a / T moves at a gradient of its root mean square
    initial: float = field(default=3.0, kw_only=True)  # mean of a at the start of the soft phase: nearly open
    spread: float = field(default=1.0, kw_only=True)  # standard deviation that observed importance gives a; 0: none
    temperature: float = field(default=0.02, kw_only=True)  # T at the end of the soft phase

    needs: ClassVar[Evidence] = "gradient_and_size"

    def __post_init__(self) -> None:
        """Refuse a rate that moves nothing, and an invalid temperature."""
        if not self.lr > 0:
            raise ValueError(f"gate.lr is {self.lr}, but must be above 0.")
        if self.spread < 0:
            raise ValueError(f"gate.spread is {self.spread}, but must be at least 0: 0 starts all gates alike.")
        if not 0.0 < self.temperature <= 1.0:
            raise ValueError(f"gate.temperature is {self.temperature}, but must lie above 0 and be at most 1.")

    @abstractmethod
    def sample(
        self,
        logit: Tensor,  # (U,) fp32, a / T
        noise: Tensor,  # (U,) fp32, uniform in (0, 1): a function of the seed, the pruner and the step
    ) -> Tensor:  # (U,) fp32
        """The gates of a training step."""

    @abstractmethod
    def mean(self, logit: Tensor) -> Tensor:
        """(U,) the gates of an evaluation, and those that are folded into the weights in the end."""

    @abstractmethod
    def open(self, logit: Tensor) -> Tensor:
        """(U,) the probability that each gate is open, differentiable in its logit."""


@dataclass(frozen=True)
class Fit:
    """What a cut makes of a site."""

    keep: Tensor  # (u,) bool
    weights: Tensor  # (o, i), 0 at the inputs of what is gone
    bias: Tensor | None  # (o,)


@dataclass(frozen=True)
class CalibratedGate(CalibrationSettings, GateMethod, ABC):
    """Chooses the units of a site and fits the weights that read them, from what goes into the consuming matrix."""

    needs: ClassVar[Evidence] = "inputs"
    comparable: ClassVar[bool] = False  # scores of heads and of neurons are not on one scale
    statistics: ClassVar[tuple[type[InputStatistic], ...]]  # of what goes into each consuming matrix

    def __post_init__(self) -> None:
        """Refuse to calibrate on nothing."""
        self.check("gate")

    def cut_bytes(self, outputs: int, inputs: int) -> int:
        """About how many bytes one cut holds besides its statistics, for `pat plan` and for errors."""
        return 4 * 4 * outputs * inputs

    def cut_flops(self, outputs: int, inputs: int) -> float:
        """About how many floating-point operations one cut takes, at most, in fp64; here next to none."""
        return 0.0

    @property
    def follows(self) -> bool:
        """Whether the walk also runs the model as it was before the cut."""
        return self.reconstruct > 0

    @abstractmethod
    def costs(
        self,
        weights: Tensor,  # (o, i) fp32
        features: int,  # consecutive inputs of a unit: i = u features
        inputs: Mapping[type[InputStatistic], Tensor],  # means over the tokens
        bias: bool,  # whether the matrix has one
    ) -> Tensor:  # (u,)
        """What each unit is worth, for budgets under which sites compete for units."""

    @abstractmethod
    def cut(
        self,
        weights: Tensor,  # (o, i) fp32
        bias: Tensor | None,  # (o,) fp32
        features: int,
        inputs: Mapping[type[InputStatistic], Tensor],
        gap: Gap | None,  # what is missing behind the matrix by now, used up; None unless `follows`
        count: int,  # of units that stay
    ) -> Fit:
        """The units that stay, and the weights and the bias that read them. ValueError where there is no such fit."""
