"""How gates move from step to step: ranked ones fade towards flags, learned ones are sampled and follow a Lagrangian.

# U units over all sites of a pruner, z gate, t step (from 0), progress of the schedule from 0 to 1
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pat.models.anatomy import Anatomy
from pat.pruning.gates import Gate, Learned, Ranked
from pat.pruning.lagrangian import Lagrangian
from pat.pruning.sites import Site


@dataclass
class GateState:
    """All that a resume needs besides the weights."""

    z: Tensor  # (U,) fp32, of the coming step where the method ranks
    keep: Tensor  # (U,) bool
    score: Tensor  # (U,) fp32: evidence, or the learned a
    begun: int = -1  # the last step that was made ready
    hardened: bool = False
    folded: bool = False  # z is in the weights


class GateTraining(ABC):
    """What differs between the kinds of methods, on a state that the pruner holds."""

    @abstractmethod
    def initial(self, ones: Tensor) -> Tensor:
        """(U,) the scores before any step."""

    @abstractmethod
    def learns(self, phase: str) -> bool:
        """Whether the steps of a phase move the scores."""

    @abstractmethod
    def advance(self, state: GateState, select: Callable[[], None] | None) -> None:
        """Before a soft step; `select` chooses the flags again where the schedule says so."""

    @abstractmethod
    def gates(self, state: GateState, t: int, progress: float) -> tuple[Tensor, Tensor]:
        """(U,) twice: what multiplies in soft step t, and in an evaluation then."""

    @abstractmethod
    def evaluated(self, state: GateState) -> Tensor:
        """(U,) the gates of an evaluation while soft."""

    @abstractmethod
    def learn(self, state: GateState, evidence: Tensor, t: int, progress: float, ramp: float) -> dict[str, float]:
        """Move the scores by (U,) what step t has shown; `ramp`: how much of the budget is due. Figures for the log."""

    @abstractmethod
    def kept(self, state: GateState) -> Tensor | None:
        """(U,) bool: the units that count as kept after a step; None: those that were chosen last."""

    @abstractmethod
    def scores(self, state: GateState) -> Tensor:
        """(U,) what the budget chooses by, higher = keep."""

    @abstractmethod
    def final(self, state: GateState) -> Tensor:
        """(U,) fp32: the gates for good, of the units that are kept."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What is saved besides the state."""

    @abstractmethod
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what was saved."""


class RankedTraining(GateTraining):
    """Flags follow from scores, and z moves towards them by 1 / fade a step."""

    def __init__(self, method: Ranked) -> None:
        self.method = method

    def initial(self, ones: Tensor) -> Tensor:
        """No evidence."""
        return torch.zeros_like(ones)

    def learns(self, phase: str) -> bool:
        """From the first step on."""
        return phase != "hard"

    def advance(self, state: GateState, select: Callable[[], None] | None) -> None:
        """Choose, and fade."""
        if select:
            select()
        step = 1.0 / self.method.fade
        state.z = (state.z + (state.keep.float() - state.z).clamp(-step, step)).clamp(0.0, 1.0)

    def gates(self, state: GateState, t: int, progress: float) -> tuple[Tensor, Tensor]:
        """Z for both."""
        return state.z, state.z

    def evaluated(self, state: GateState) -> Tensor:
        """Z."""
        return state.z

    def learn(self, state: GateState, evidence: Tensor, t: int, progress: float, ramp: float) -> dict[str, float]:
        """The method's own rule."""
        state.score = self.method.update(state.score, evidence)
        return {}

    def kept(self, state: GateState) -> Tensor | None:
        """A step moves no flag."""
        return None

    def scores(self, state: GateState) -> Tensor:
        """The evidence."""
        return state.score

    def final(self, state: GateState) -> Tensor:
        """All 1."""
        return torch.ones_like(state.z)

    def tensors(self) -> dict[str, Tensor]:
        """None."""
        return {}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Nothing."""


class LearnedTraining(GateTraining):
    """The score is the parameter a: z is sampled from it, and the Lagrangian moves it."""

    def __init__(self, method: Learned, lagrangian: Lagrangian, seed: int) -> None:
        self.method, self.lagrangian, self.seed = method, lagrangian, seed

    def initial(self, ones: Tensor) -> Tensor:
        """As the method says."""
        return ones * self.method.initial

    def learns(self, phase: str) -> bool:
        """While gates are sampled."""
        return phase == "soft"

    def advance(self, state: GateState, select: Callable[[], None] | None) -> None:
        """Nothing: no flag is down before the end."""

    def gates(self, state: GateState, t: int, progress: float) -> tuple[Tensor, Tensor]:
        """A sample, and the mean."""
        return self.lagrangian.sample(state.score, t, self.seed, progress).detach(), self.evaluated(state)

    def evaluated(self, state: GateState) -> Tensor:
        """The mean."""
        return self.method.mean(state.score)

    def learn(self, state: GateState, evidence: Tensor, t: int, progress: float, ramp: float) -> dict[str, float]:
        """A step of the Lagrangian."""
        state.score, figures = self.lagrangian.step(state.score, evidence, t, self.seed, progress, ramp)
        return figures

    def kept(self, state: GateState) -> Tensor | None:
        """Those that an evaluation lets through."""
        return self.evaluated(state) > 0

    def scores(self, state: GateState) -> Tensor:
        """How far each counts as open at the end of the schedule."""
        return self.method.open(state.score, 1.0)

    def final(self, state: GateState) -> Tensor:
        """The mean."""
        return self.evaluated(state)

    def tensors(self) -> dict[str, Tensor]:
        """The Lagrangian's."""
        return self.lagrangian.tensors()

    def load(self, tensors: dict[str, Tensor]) -> None:
        """The Lagrangian's."""
        self.lagrangian.load(tensors)


def gate_training(method: Gate, budget: Any, anatomy: Anatomy, sites: Sequence[Site], seed: int) -> GateTraining:
    """The kind that a method is of."""
    if isinstance(method, Learned):
        return LearnedTraining(method, Lagrangian(method, budget, anatomy, sites), seed)
    assert isinstance(method, Ranked)
    return RankedTraining(method)
