"""How gates move from step to step: ranked ones fade towards flags, learned ones are sampled and follow a Lagrangian.

# U units over all sites of a pruner, z gate, t step (from 0)
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pat.models.anatomy import Anatomy
from pat.pruning.gates import CalibratedGate, GateMethod, Learned, Ranked
from pat.pruning.schedules import Timeline
from pat.pruning.structures.gate_state import GateState
from pat.pruning.structures.lagrangian import Lagrangian
from pat.pruning.structures.sites import Site

FAR = 0.05  # share of kept gates below 0.9 that a user should know of
CLOSING = 0.25  # the share of the soft phase, its last, in which learned gates are driven to 0 or 1


@dataclass(frozen=True)
class Moment:
    """Where a run is: what a schedule says of step t."""

    t: int
    phase: str
    ramp: float  # how much of the budget is due
    closing: float  # 0 until the last part of the soft phase, 1 from its end on

    @classmethod
    def of(cls, line: Timeline, t: int, ramp: float) -> Moment:
        """The moment of step t, when `ramp` of the budget is due."""
        length = max(1, round(CLOSING * (line.hard_from - line.start)))
        closing = min(max((t + 1 - (line.hard_from - length)) / length, 0.0), 1.0)
        return cls(t, line.phase(t), ramp, closing)


class GateTraining(ABC):
    """How one kind of method moves gates. The state itself is held by the pruner."""

    per_cost: ClassVar[bool] = False  # scores are per cost: the budget must not divide them by what a unit costs

    @abstractmethod
    def initial(self, ones: Tensor) -> Tensor:
        """(U,) the scores before any step."""

    @abstractmethod
    def learns(self, phase: str) -> bool:
        """Whether the steps of a phase move the scores."""

    @abstractmethod
    def advance(self, state: GateState, now: Moment, select: Callable[[], None] | None) -> None:
        """Before a soft step; `select` chooses the flags again where the schedule says so."""

    @abstractmethod
    def gates(self, state: GateState, now: Moment) -> tuple[Tensor, Tensor]:
        """(U,) twice: the gates of a soft step, and of an evaluation then."""

    @abstractmethod
    def evaluated(self, state: GateState, now: Moment) -> Tensor:
        """(U,) the gates of an evaluation while soft."""

    @abstractmethod
    def learn(self, state: GateState, evidence: Tensor, now: Moment) -> dict[str, float]:
        """Move the scores by what a step has shown, as the method needs it. Figures for the log."""

    @abstractmethod
    def kept(self, state: GateState, now: Moment) -> Tensor | None:
        """(U,) bool: the units that count as kept after a step; None: those that were chosen last."""

    @abstractmethod
    def scores(self, state: GateState) -> Tensor:
        """(U,) what the budget chooses by, higher = keep."""

    @abstractmethod
    def final(self, state: GateState) -> Tensor:
        """(U,) fp32: the gates for good, of the units that are kept."""

    @abstractmethod
    def spread(self, state: GateState) -> dict[str, float] | None:
        """How near to 1 the final gates of the kept units are; None where they are 1 by definition."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What is saved besides the state."""

    @abstractmethod
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what was saved."""


class CutTraining(GateTraining):
    """Nothing moves before the one cut, which leaves gates of 0 and 1."""

    def initial(self, ones: Tensor) -> Tensor:
        """0: there is no evidence yet."""
        return torch.zeros_like(ones)

    def learns(self, phase: str) -> bool:
        """Never: a cut measures for itself."""
        return False

    def advance(self, state: GateState, now: Moment, select: Callable[[], None] | None) -> None:
        """All gates stay open."""

    def gates(self, state: GateState, now: Moment) -> tuple[Tensor, Tensor]:
        """An evaluation sees the gates of the step."""
        return state.z, state.z

    def evaluated(self, state: GateState, now: Moment) -> Tensor:
        """The gates of the step."""
        return state.z

    def learn(self, state: GateState, evidence: Tensor, now: Moment) -> dict[str, float]:
        """No step has evidence."""
        return {}

    def kept(self, state: GateState, now: Moment) -> Tensor | None:
        """A step moves no flag."""
        return None

    def scores(self, state: GateState) -> Tensor:
        """The evidence."""
        return state.score

    def final(self, state: GateState) -> Tensor:
        """1: what is kept is not scaled."""
        return torch.ones_like(state.z)

    def spread(self, state: GateState) -> dict[str, float] | None:
        """None, as `final` is 1."""
        return None

    def tensors(self) -> dict[str, Tensor]:
        """None: scores and gates are in the state."""
        return {}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes none: scores and gates are in the state."""


class RankedTraining(CutTraining):
    """Flags follow from scores, and z moves towards them by 1 / fade a step, until it is 0 or 1 as after a cut."""

    def __init__(self, method: Ranked) -> None:
        self.method = method

    def learns(self, phase: str) -> bool:
        """Every step before the hard phase."""
        return phase != "hard"

    def advance(self, state: GateState, now: Moment, select: Callable[[], None] | None) -> None:
        """Choose, and fade."""
        if select:
            select()
        step = 1.0 / self.method.fade
        state.z = (state.z + (state.keep.float() - state.z).clamp(-step, step)).clamp(0.0, 1.0)

    def learn(self, state: GateState, evidence: Tensor, now: Moment) -> dict[str, float]:
        """The method's own rule."""
        state.score = self.method.update(state.score, evidence)
        return {}


class LearnedTraining(GateTraining):
    """The score is the logit a of a keep probability: z is sampled from it, and the Lagrangian moves it."""

    per_cost = True

    def __init__(self, method: Learned, lagrangian: Lagrangian, name: str, seed: int) -> None:
        self.method, self.lagrangian, self.name, self.seed = method, lagrangian, name, seed

    def initial(self, ones: Tensor) -> Tensor:
        """The method's initial logit."""
        return ones * self.method.initial

    def learns(self, phase: str) -> bool:
        """In the dense phase what units are worth, then while gates are sampled."""
        return phase != "hard"

    def advance(self, state: GateState, now: Moment, select: Callable[[], None] | None) -> None:
        """Where the soft phase begins, start from what the dense one has shown. No flag is down before the end."""
        if not self.lagrangian.begun:
            state.score = self.lagrangian.begin(state.score)

    def gates(self, state: GateState, now: Moment) -> tuple[Tensor, Tensor]:
        """A sample, and the mean."""
        generator = torch.Generator().manual_seed(noise_seed(self.seed, self.name, now.t))
        noise = torch.rand(state.score.shape, generator=generator).clamp(1e-6, 1.0 - 1e-6)
        return self.method.sample(self._logit(state, now), noise), self.evaluated(state, now)

    def evaluated(self, state: GateState, now: Moment) -> Tensor:
        """The method's mean."""
        return self.method.mean(self._logit(state, now))

    def learn(self, state: GateState, evidence: Tensor, now: Moment) -> dict[str, float]:
        """A step of the Lagrangian."""
        grad, size = evidence
        if now.phase == "dense":
            self.lagrangian.observe(grad, size)
            return {}
        a = self.lagrangian.weigh(state.score, size)
        state.score, figures = self.lagrangian.step(a, grad, self._temperature(now), now.ramp)
        return figures

    def kept(self, state: GateState, now: Moment) -> Tensor | None:
        """Those that an evaluation lets through."""
        return self.evaluated(state, now) > 0 if now.phase == "soft" else None

    def scores(self, state: GateState) -> Tensor:
        """1 + a / (1 + |a|), (U,): above 0, in the order of the keep probabilities, and never equal to 1 for all."""
        return 1.0 + state.score / (1.0 + state.score.abs())

    def final(self, state: GateState) -> Tensor:
        """The mean; 1 where that is 0, or a unit that is kept would be lost without being counted as removed."""
        mean = self._ended(state)
        return torch.where(mean > 0.0, mean, 1.0)

    def spread(self, state: GateState) -> dict[str, float] | None:
        """Of the means, including units that ended closed and are opened by the budget."""
        kept = self._ended(state)[state.keep]
        return {
            "median": float(kept.median()),
            "lowest": float(kept.min()),
            "share_below_0.9": float((kept < 0.9).float().mean()),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Those of the Lagrangian."""
        return self.lagrangian.tensors()

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Those of the Lagrangian."""
        self.lagrangian.load(tensors)

    def _ended(self, state: GateState) -> Tensor:
        """(U,) the means at the last temperature."""
        return self.method.mean(state.score / self.method.temperature)

    def _temperature(self, now: Moment) -> float:
        """T: from 1 to the method's while the soft phase closes, by equal factors."""
        return self.method.temperature**now.closing

    def _logit(self, state: GateState, now: Moment) -> Tensor:
        return state.score / self._temperature(now)


def far_from_1(pruner: str, spread: Mapping[str, float]) -> str | None:
    """A sentence where too many gates of the kept units ended far from 1; None where they did not."""
    if spread["share_below_0.9"] <= FAR:
        return None
    return (
        f"pruner {pruner}: {spread['share_below_0.9']:.0%} of the kept gates ended below 0.9 (median "
        f"{spread['median']:.2f}, lowest {spread['lowest']:.2f}), so that what is kept is scaled down: lengthen "
        f"the soft phase (pruners.{pruner}.schedule.hard_from), or lower pruners.{pruner}.gate.temperature"
    )


def noise_seed(seed: int, name: str, t: int) -> int:
    """The seed of a pruner's noise in step t: a hash of the run's seed, the pruner's name and t."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name} {t}".encode()).digest()[:8], "little") >> 1


def gate_training(
    method: GateMethod, budget: Any, anatomy: Anatomy, sites: Sequence[Site], name: str, seed: int
) -> GateTraining:
    """The training that suits a method, for the pruner of that name."""
    if isinstance(method, Learned):
        return LearnedTraining(method, Lagrangian(method, budget, anatomy, sites), name, seed)
    if isinstance(method, CalibratedGate):
        return CutTraining()
    assert isinstance(method, Ranked)
    return RankedTraining(method)
