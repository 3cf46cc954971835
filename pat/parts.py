"""What the loop works with: the parts of a rank, and what a resumed run must know besides weights and masks."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pat import divergence, run
from pat.distill import Distiller
from pat.pruning.comm import Comm
from pat.pruning.pruner import Pruner
from pat.schema import Config
from pat.shares import Shares, shares
from pat.tracking import Tracker
from pat.watchdog import Watchdog


@dataclass
class Progress:
    """What a resumed run must know besides weights and masks. All of it is in every checkpoint."""

    step: int = 0  # optimizer steps done
    tokens: float = 0.0  # seen, over all ranks
    train_seconds: float = 0.0
    dense_metrics: dict[str, float] | None = None  # just before the first mask
    dense_step: int | None = None  # how many steps they were trained
    metrics: dict[str, float] | None = None  # of the last evaluation
    details: dict[str, Any] | None = None  # of the same: what the task says besides
    best: list[float] | None = None  # (phase, signed metric) of the best checkpoint
    worse: int = 0  # evaluations since then
    initial_loss: float | None = None  # before the first step
    skipped: int = 0  # steps without a finite gradient
    skipped_lately: list[int] = field(default_factory=list)  # the steps of those among the last few
    saved_step: int = -1
    evaluated_step: int = -1
    save_seconds: float = 0.0
    peak_pruner_bytes: int = 0
    logged_bytes: int | None = None  # of metrics.jsonl
    reached: dict[str, int] = field(default_factory=dict)  # of train.export_at: sparsity -> step
    teacher: dict[str, str] | None = None  # path and sha256 of the weights that are distilled

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the manifest."""
        return dataclasses.asdict(self)


@dataclass
class Parts:
    """Everything that the loop uses."""

    config: Config
    run: run.RunDir
    world: Comm
    task: Any
    loader: Any
    eval_batches: Callable[[], Iterator[Any]]
    engine: Any
    pruner: Pruner
    tracker: Tracker
    flag: run.PreemptionFlag
    accumulation: int
    label_names: list[str] | None = None
    sums: Any = None  # the last evaluation's, over all ranks
    progress: Progress = field(default_factory=Progress)
    last_save: float = field(default_factory=time.monotonic)
    distiller: Distiller | None = None
    aside_s: float = 0.0  # that this start has spent in evaluations and saves
    watchdog: Watchdog = field(default_factory=Watchdog)

    def shares(self, batches: Sequence[Any]) -> Sequence[Shares]:
        """What each of a step's losses counts for: its share of the global batch. Collective unless all are equal."""
        counted = self.task.uneven or (self.distiller is not None and self.distiller.hidden_weight > 0)
        if not (self.config.train.global_mean and counted):
            return [(1.0, 1.0)] * len(batches)
        return [(row[0], row[1]) for row in shares(self.task, batches, self.world)]

    def loss(self, batch: Any, t: int, shares: Shares = (1.0, 1.0)) -> torch.Tensor:
        """The task's loss at step t, with the teacher's if there is one; averaged, that of the global batch."""
        if self.distiller:
            return self.distiller.loss(self.engine, batch, t, shares)
        return self.task.loss(self.engine, batch) * shares[0]

    def max_loss(self) -> float:
        """Above it the run counts as diverged."""
        chance = self.task.chance_loss(self.engine.module.config)
        return divergence.loss_limit(self.config, self.progress.initial_loss, chance)

    def agree(self, stop: bool, due: bool) -> tuple[bool, bool]:
        """Whether any rank was asked to stop, and whether any finds a checkpoint due. Collective."""
        self.watchdog.beat()
        flags = self.world.max(torch.tensor([stop, due], dtype=torch.int32)).tolist()
        return bool(flags[0]), bool(flags[1])

    def checkpoint_due(self) -> bool:
        """By steps, or by this rank's clock."""
        train = self.config.train
        by_steps = bool(train.checkpoint_every) and self.progress.step % train.checkpoint_every == 0
        minutes = train.checkpoint_every_min
        return by_steps or (minutes is not None and time.monotonic() - self.last_save >= 60 * minutes)

    def evaluation_due(self) -> bool:
        """At this step, and not done by a start that was stopped after it."""
        every, step = self.config.train.eval_every, self.progress.step
        at = bool(every) and step % every == 0 and 0 < step < self.config.train.num_steps
        return at and self.progress.evaluated_step != step

    def newly_reached(self) -> dict[str, int]:
        """Of train.export_at: the sparsities that are reached now and were not before, with this step."""
        if len(self.progress.reached) == len(self.config.train.export_at):  # as in most runs, at every step: none
            return {}
        now, end = self.pruner.totals.sparsity, self.pruner.totals.target
        values = {f"{value:g}": value for value in self.config.train.export_at}
        new = [name for name, value in values.items() if name not in self.progress.reached and now >= min(value, end)]
        return dict.fromkeys(new, self.progress.step)

    def note_reached(self, reached: dict[str, int]) -> None:
        """For good; and say what the model really has, since masks move in steps."""
        self.progress.reached |= reached
        if reached:
            names = " and ".join(f"sparsity={value}" for value in reached)
            self.tracker.say(
                f"{names} reached at step {self.progress.step}, with {self.pruner.totals.sparsity:.4g}: kept"
            )

    def is_best(self, metrics: dict[str, float]) -> bool:
        """Whether these metrics make a best checkpoint; only models in their last phase count, so never a dense one."""
        if self.pruner.pruners and self.pruner.phase(self.progress.step - 1) != "hard":
            return False
        name = self.config.train.best_metric or self.task.best_metric
        value = metrics[name] if self.task.higher_is_better(name) else -metrics[name]
        if self.progress.best is not None and value <= self.progress.best[0]:
            self.progress.worse += 1
            return False
        self.progress.best, self.progress.worse = [value], 0
        return True

    def stops_early(self) -> bool:
        """Whether train.early_stopping_patience is used up; only evaluations in the last phase count (`is_best`).

        A function of what a checkpoint holds: a start after an interruption decides alike.
        """
        patience = self.config.train.early_stopping_patience
        return patience is not None and self.progress.worse >= patience
