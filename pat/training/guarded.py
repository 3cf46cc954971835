"""The envelope at work in a run: evaluations are judged; schedules are held, stopped and resumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pat.envelope import guard, limits
from pat.envelope.guard import Look
from pat.envelope.spec import SLICES
from pat.pruning.pruner import Pruner
from pat.pruning.types import PromiseBroken
from pat.schema import Config
from pat.tasks.base import Task
from pat.training import slices
from pat.training.progress import Progress
from pat.training.tracking import Tracker


class Guard:
    """What the envelope asks of one run. Its memory is in the run's progress."""

    def __init__(self, config: Config, progress: Progress, pruner: Pruner, task: Task) -> None:
        assert config.train.eval_every and pruner.first_soft_step is not None, "pat.config.validate sees to it"
        self.config, self.progress, self.pruner = config, progress, pruner
        self.every, self.first = config.train.eval_every, pruner.first_soft_step
        self.of_slices = task.sample_metric
        self.higher = task.higher_is_better

    @property
    def back(self) -> bool:
        """Whether the run is to go back before it does anything else."""
        return self.progress.envelope.back

    def _figures(self, metrics: Mapping[str, float] | None, of_slices: slices.Figures | None) -> dict[str, Any]:
        progress, better = self.progress, self.higher
        assert progress.dense_metrics is not None and metrics is not None, "both are measured"
        envelope = {name: limit for name, limit in self.config.envelope.items() if name != SLICES}
        more = slices.limits(self.config.envelope, progress.dense_slices or {}, better(self.of_slices))
        higher = {name: better(name) for name in envelope} | dict.fromkeys(more, better(self.of_slices))
        dense, now = (
            {**whole, **{name: one["value"] for name, one in (parts or {}).items()}}
            for whole, parts in ((progress.dense_metrics, progress.dense_slices), (metrics, of_slices))
        )
        return limits.figures(envelope | more, dense, now, higher, more)

    def looks_before(self, t: int) -> bool:
        """Whether an evaluation decides what step t does, so that nothing of that step may be prepared before it."""
        return self.first < t < self.config.train.num_steps and t % self.every == 0

    def begin(self) -> bool:
        """The dense model, just measured, is the first good state; whether that is new. Raises PromiseBroken where the
        dense model is outside itself."""
        record, progress = self.progress.envelope, self.progress
        found = self._figures(progress.dense_metrics, progress.dense_slices)
        if record.good is not None:
            return False
        if not found["inside"]:
            raise PromiseBroken(
                f"the dense model is outside its envelope at step {self.progress.step}: {guard.measured(found)}; "
                "let schedule.start come later, or loosen that limit"
            )
        record.good, record.asked = {"step": self.progress.step, "sparsity": 0.0}, self.pruner.totals.target
        return True

    def judge(self, tracker: Tracker) -> None:
        """The evaluation that was just made decides, if it is one that does."""
        progress, step = self.progress, self.progress.step
        last = step == self.config.train.num_steps
        if not self.looks_before(step) and not last:
            return
        record, hard = progress.envelope, self.pruner.phase(step - 1) == "hard"
        keeps = last or not (hard and self.pruner.hardened)  # the optimizer may have skipped the step that makes it so
        record.see(step, self.pruner.totals.sparsity, self._figures(progress.metrics, progress.slices), keeps)
        if hard and self.pruner.hardened and record.stopped is None:
            record.asked = self.pruner.totals.target  # scores may have had a part in it
        one = record.judged[-1]
        said = self._act(guard.decide(self._look(one["inside"], hard)), step)
        line = {"inside": int(one["inside"]), "sparsity": one["sparsity"], "holds": record.holds}
        line |= {f"{metric}/limit": value for metric, value in one["limits"].items()}
        tracker.log({f"envelope/{key}": value for key, value in line.items()}, step)
        if said:
            tracker.say(said)

    def _look(self, inside: bool, hard: bool) -> Look:
        progress, train = self.progress, self.config.train
        left = self.pruner.last_hard_from - progress.clock.at(progress.step - 1) - 1  # steps, until all is permanent
        return Look(
            inside=inside,
            hard=hard,
            outside=progress.envelope.outside,
            patience=train.envelope_patience,
            last=progress.step + self.every >= train.num_steps,
            in_time=progress.step + left < train.num_steps,
        )

    def _act(self, action: guard.Action, step: int) -> str | None:
        clock, record = self.progress.clock, self.progress.envelope
        found = f"{record.judged[-1]['sparsity']:.2%} at step {step}"
        if action == "go on":
            healed = clock.holds
            clock.go_on(step)
            return f"envelope: {found} is inside again, the schedule goes on" if healed else None
        if action == "stop":
            clock.stop(step)
            record.stopped = "time"
            return f"envelope: no steps are left to prune more than {found}: it becomes permanent"
        if action == "go back":
            record.back = True
            return None
        began = not clock.holds
        record.holds += began
        clock.hold(step)
        return (
            f"envelope: {found} is outside: {guard.measured(record.judged[-1])}; the schedule is held"
            if began
            else None
        )

    def ends(self) -> None:
        """All steps are done and evaluated: may decide to go back."""
        self.progress.envelope.ends(self.pruner.totals.sparsity)
