"""Which steps of a run its schedules count: pauses, and where they were stopped. Without either: all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Clock:
    """Shared by all schedules of a run, so that they stay pure functions: of the step, and of what is written here.

    c(t) = |{u <= t: u in no pause and before the stop}| - 1    the step of a schedule that is in force in step t

    In a pause and after the stop, c stays at the step before. All of this is in every checkpoint.
    """

    pauses: list[list[int]] = field(default_factory=list[list[int]])  # [first step, first after it]; open: [first step]
    stopped: int | None = None  # the step from which everything is permanent

    def at(self, t: int) -> int:
        """c(t), the step of a schedule that is in force in step t of the run: t itself without a pause or a stop."""
        if not self.pauses and self.stopped is None:
            return t
        last = t if self.stopped is None else min(t, self.stopped - 1)
        ends = [(pause[0], pause[1] if len(pause) > 1 else last + 1) for pause in self.pauses]
        return last - sum(max(0, min(end, last + 1) - first) for first, end in ends)

    def moves(self, t: int) -> bool:
        """Whether step t is one of a schedule."""
        return self.at(t) != self.at(t - 1)

    def is_stopped(self, t: int) -> bool:
        """Whether step t comes after the stop."""
        return self.stopped is not None and t >= self.stopped

    @property
    def holds(self) -> bool:
        """Whether a pause has begun and not ended."""
        return bool(self.pauses) and len(self.pauses[-1]) == 1

    def hold(self, t: int) -> None:
        """Schedules stand still from step t on. No effect if they already do."""
        if not self.holds:
            self.pauses.append([t])

    def go_on(self, t: int) -> None:
        """Schedules move from step t on. No effect if they already do."""
        if self.holds:
            self.pauses[-1].append(t)

    def stop(self, t: int) -> None:
        """From step t on everything is permanent as it was chosen last."""
        self.go_on(t)
        self.stopped = t

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take the state of a checkpoint."""
        self.pauses = [list(pause) for pause in saved.get("pauses", [])]
        self.stopped = saved.get("stopped")
