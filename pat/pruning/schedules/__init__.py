"""Schedules: pure functions of the step. When the masks move, when they freeze, and how much is pruned until then.

step   0 ......... start ................ end ..... hard_from ......... num_steps
phase  dense       soft: s(t) rises       soft: s_f    hard: recovery
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pat.common.rounding import part_of


@dataclass(frozen=True)
class Schedule(ABC):
    """What all ramps share. A whole number is a step; a number with a point, in [0, 1], a fraction of the run."""

    name: str
    start: int | float = field(kw_only=True)  # first step of the soft phase
    end: int | float | None = field(kw_only=True)  # first step at the full target
    hard_from: int | float | None = field(default=None, kw_only=True)  # first step of the final choice; null: `end`
    select_every: int = field(default=1, kw_only=True)  # steps between selections
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
        if self.select_every < 1:
            raise ValueError(f"schedule.select_every is {self.select_every}, but must be at least 1 step.")
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
    """A schedule in absolute steps. Step t is the t-th optimizer step, from 0."""

    schedule: Schedule
    start: int
    end: int
    hard_from: int
    num_steps: int

    @property
    def select_every(self) -> int:
        """Steps between selections."""
        return self.schedule.select_every

    def phase(self, t: int) -> Literal["dense", "soft", "hard"]:
        """Dense before `start`, soft before `hard_from`, hard from there on."""
        return "dense" if t < self.start else "soft" if t < self.hard_from else "hard"

    def progress(self, t: int) -> float:
        """(t - start) / (end - start), clamped to [0, 1]; 1 from `end` on."""
        return Ramp(self.start, self.end)(t)

    def target(self, t: int, final: float) -> float:
        """Sparsity s(t): 0 before `start`, exactly `final` from `end` on, monotone."""
        initial = self.schedule.initial
        if initial > final:
            raise ValueError(f"schedule.initial is {initial}, above the budget's {final}: lower it.")
        if t < self.start:
            return 0.0
        if t >= self.end:
            return final
        return min(max(self.schedule.ramp(self.progress(t), initial, final), initial), final)

    def is_selection_step(self, t: int) -> bool:
        """Every `select_every` steps of the soft phase, at `end`, and at `hard_from`, the last."""
        if not self.start <= t <= self.hard_from:
            return False
        return (t - self.start) % self.select_every == 0 or t in (self.end, self.hard_from)


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

    A run of no steps has one moment, in which all happens: 0."""
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
