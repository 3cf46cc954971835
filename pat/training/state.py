"""What the loop works with on one rank. Each of its members knows only what it needs; none knows the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from pat.common.comm import Comm
from pat.pruning.pruner import Pruner
from pat.run import directory, preemption
from pat.schema import Config
from pat.tasks.base import Task
from pat.training.divergence import LossBound
from pat.training.due import Due
from pat.training.guarded import Guard
from pat.training.objective import Objective
from pat.training.progress import Progress
from pat.training.slices import Sliced
from pat.training.tracking import Tracker
from pat.training.watchdog import Watchdog


@dataclass
class Feed:
    """Where a rank's batches come from."""

    batches: Callable[[int], list[Any]]  # the micro-batches of step t
    eval_batches: Callable[[], Iterator[Any]]
    label_names: list[str] = field(default_factory=list)


@dataclass
class Training:
    """What the loop holds on one rank: what it works with, and what it counts."""

    config: Config
    run: directory.RunDir
    world: Comm
    task: Task
    feed: Feed
    engine: Any
    pruner: Pruner
    objective: Objective
    tracker: Tracker
    flag: preemption.PreemptionFlag
    progress: Progress
    due: Due
    bound: LossBound
    guard: Guard | None = None  # where there is an envelope
    slices: Sliced | None = None  # where the data names slices, or the envelope limits them
    watchdog: Watchdog = field(default_factory=Watchdog)
    aside_s: float = 0.0  # that this start has spent in evaluations and saves
    count: Callable[[], None] = lambda: None  # brings progress up to the last step, before it is saved; collective

    def agree(self, due: bool = False) -> tuple[bool, bool]:
        """Whether any rank was asked to stop, and whether any finds a checkpoint due. Collective."""
        self.watchdog.beat()
        flags = self.world.max(torch.tensor([self.flag.requested, due], dtype=torch.int32)).tolist()
        return bool(flags[0]), bool(flags[1])

    def begins(self, t: int) -> bool:
        """Whether the loop itself begins step t, because an evaluation comes first in which nothing of that step may
        be in force: that of the dense model, or one that the envelope judges."""
        return t == self.pruner.first_soft_step or (self.guard is not None and self.guard.looks_before(t))

    @property
    def final_phase(self) -> bool:
        """Whether the model is as dense or as sparse as the run will leave it."""
        return not self.pruner.pruners or (self.pruner.phase(self.progress.step - 1) == "hard" and self.pruner.hardened)
