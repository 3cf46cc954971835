"""Schedules: pure functions of the step. When masks move, when they freeze, and how much is pruned by then.

step   0 ......... start ................ end ..... hard_from ......... num_steps
phase  dense       soft: s(t) rises       soft: s_f    hard: recovery

A run with an envelope may hold or stop its schedules: these steps are then those that its clock counts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from pat.common.rounding import part_of
from pat.pruning.clock import Clock


@dataclass(frozen=True)
class Schedule(ABC):
    """What all ramps share. A whole number is a step; a number with a point, in [0, 1], a fraction of the run."""

    name: str
    start: int | float = field(kw_only=True)  # first step of the soft phase
    end: int | float | None = field(kw_only=True)  # first step at the full target
    hard_from: int | float | None = field(default=None, kw_only=True)  # first step of the final choice; null: `end`
    select_every: int | float = field(default=1, kw_only=True)  # steps between selections, at least 1
    initial: float = field(default=0.0, kw_only=True)  # sparsity at `start`

    needs_end: ClassVar[bool] = True  # whether the ramp takes time

    @abstractmethod
    def ramp(
        self,
        u: float,  # progress in [0, 1]
        initial: float,
        final: float,
    ) -> float:
        """Sparsity at progress u: monotone, `final` at 1."""

    def resolve(self, num_steps: int) -> Timeline:
        """The schedule in the steps of one run; ValueError if it does not fit."""
        if self.select_every < 1 if isinstance(self.select_every, int) else not 0 < self.select_every <= 1:
            raise ValueError(
                f"schedule.select_every is {self.select_every}, but must be at least 1 step, or a fraction of the run "
                "above 0.0 and up to 1.0."
            )
        if not 0.0 <= self.initial < 1.0:
            raise ValueError(f"schedule.initial is {self.initial}, but must be at least 0 and below 1.")
        if self.end is None and self.needs_end:
            raise ValueError(f"schedule.end is null, but a {self.name} ramp needs a step or a fraction of the run.")
        start = absolute_step("schedule.start", self.start, num_steps)
        end = start if self.end is None else absolute_step("schedule.end", self.end, num_steps)
        hard = end if self.hard_from is None else absolute_step("schedule.hard_from", self.hard_from, num_steps)
        if end < start:
            raise ValueError(f"The schedule ends at step {end}, before it starts at step {start}: raise schedule.end.")
        if hard < end:
            raise ValueError(
                f"The mask would become permanent at step {hard}, before the schedule ends at step {end}: "
                "raise schedule.hard_from or leave it null."
            )
        return Timeline(self, start, end, hard, num_steps)


@dataclass(frozen=True)
class Timeline:
    """A schedule in absolute steps. Step t is the t-th optimizer step, from 0; start, end and hard_from are steps that
    the clock counts."""

    schedule: Schedule
    start: int
    end: int
    hard_from: int
    num_steps: int
    clock: Clock = field(default_factory=Clock)

    @property
    def planned(self) -> Timeline:
        """The same where the clock counts every step: all steps are those of the schedule."""
        return replace(self, clock=Clock())

    @property
    def select_every(self) -> int:
        """Steps between selections; a fraction is one of the whole run, rounded half up, and at least 1 step."""
        given = self.schedule.select_every
        return given if isinstance(given, int) else max(1, part_of(self.num_steps, given))

    def phase(self, t: int) -> Literal["dense", "soft", "hard"]:
        """Dense before `start`, soft before `hard_from`, hard from there on, or from where the clock was stopped."""
        at = self.clock.at(t)
        if at >= self.hard_from or self.clock.is_stopped(t):
            return "hard"
        return "dense" if at < self.start else "soft"

    def progress(self, t: int) -> float:
        """(t - start) / (end - start), clamped to [0, 1]; 1 from `end` on."""
        return Ramp(self.start, self.end)(self.clock.at(t))

    def target(self, t: int, final: float) -> float:
        """Sparsity s(t): 0 before `start`, exactly `final` from `end` on, monotone; after a stop that of the last
        selection before it."""
        initial, at = self.schedule.initial, self.clock.at(t)
        if initial > final:
            raise ValueError(f"schedule.initial is {initial}, above the budget's {final}: lower it.")
        if self.clock.is_stopped(t):
            at = self._last_selection(at)
        if at < self.start:
            return 0.0
        if at >= self.end:
            return final
        u = Ramp(self.start, self.end)(at)
        return min(max(self.schedule.ramp(u, initial, final), initial), final)

    def is_selection_step(self, t: int) -> bool:
        """Every `select_every` steps of the soft phase, at `end`, and at `hard_from`, the last."""
        at = self.clock.at(t)
        if not self.start <= at <= self.hard_from or not self.clock.moves(t):
            return False
        return (at - self.start) % self.select_every == 0 or at in (self.end, self.hard_from)

    def num_cuts(self) -> int:
        """Selections that may remove more than the one before, where the clock counts every step."""
        regular, final = range(self.start, self.hard_from + 1, self.select_every), (1 + self.schedule.initial) / 2
        return len({self.target(t, final) for t in (*regular, self.end, self.hard_from)} - {0.0})

    def _last_selection(self, at: int) -> int:
        """The last selection up to a step that the clock counts; that step itself where there was none."""
        if at < self.start:
            return at
        soft = min(at, self.hard_from)
        regular = soft - (soft - self.start) % self.select_every
        return max([regular, *(step for step in (self.end, self.hard_from) if step <= at)])


@dataclass(frozen=True)
class Ramp:
    """A factor of step t: 0 before `start`, then linear, 1 from `end` on. Absolute steps."""

    start: int
    end: int

    @classmethod
    def of(cls, section: str, start: int | float, end: int | float | None, num_steps: int) -> Ramp:
        """The keys `start` and `end` of a section of the config; no end: 1 from `start` on. ValueError if unfit."""
        first = absolute_step(f"{section}.start", start, num_steps)
        last = first if end is None else absolute_step(f"{section}.end", end, num_steps)
        if last < first:
            raise ValueError(f"{section}.end is step {last}, before {section}.start at step {first}: raise it.")
        return cls(first, last)

    def __call__(self, t: int) -> float:
        """(t - start) / (end - start), clamped to [0, 1]; 1 from `end` on."""
        if t >= self.end:
            return 1.0
        return 0.0 if t <= self.start else (t - self.start) / (self.end - self.start)


def absolute_step(key: str, value: int | float, num_steps: int) -> int:
    """A step as given, or the fraction of the run rounded half up; a fraction never leaves the run.

    In a run of no steps everything happens at step 0."""
    if num_steps == 0:
        num_steps, value = 1, value if isinstance(value, float) else min(value, 0)
    if isinstance(value, int):
        if not 0 <= value < num_steps:
            raise ValueError(f"{key} is step {value}, outside the run's steps 0 to {num_steps - 1}.")
        return value
    if not 0.0 <= value <= 1.0:
        raise ValueError(
            f"{key} is {value}, but must be a whole number (a step) or a fraction of the run from 0.0 to 1.0."
        )
    return min(part_of(num_steps, value), num_steps - 1)
