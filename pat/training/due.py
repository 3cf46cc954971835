"""What is due where the run stands: a checkpoint, an evaluation, a variant to keep, the end.

All but the clock is a function of the config and of what every checkpoint holds: a start after an interruption decides
as the one before it would have.
"""

from __future__ import annotations

import math
import time

from pat.pruning.totals import Totals
from pat.schema import TrainConfig
from pat.training.progress import Progress

MINUTES_BEFORE_CUT = 1.0  # work that is lost if the cut is stopped


class Due:
    """Answers of one run, at the step where its progress stands."""

    def __init__(self, train: TrainConfig, progress: Progress, metric: str, higher_is_better: bool) -> None:
        self.train, self.progress = train, progress
        self.metric, self.sign = metric, 1.0 if higher_is_better else -1.0  # by which the best checkpoint is chosen
        self.last_save = time.monotonic()

    def checkpoint(self, cut_next: bool = False) -> bool:
        """By steps, or by this rank's clock; before a calibrated cut, which takes long, sooner.

        A skipped step changes nothing, but may follow one that went wrong, so its checkpoint waits for the next
        step: bad checkpoints must not push out the last good one."""
        every, minutes, progress = self.train.checkpoint_every, self.train.checkpoint_every_minutes, self.progress
        if progress.step in progress.skipped_lately:
            return False
        by_steps = every is not None and progress.step // every > max(progress.saved_step, 0) // every
        if minutes is not None and cut_next:
            minutes = min(minutes, MINUTES_BEFORE_CUT)
        return by_steps or (minutes is not None and time.monotonic() - self.last_save >= 60 * minutes)

    def saved(self) -> None:
        """A checkpoint of this step is being written."""
        self.progress.saved_step, self.last_save = self.progress.step, time.monotonic()

    def evaluation(self) -> bool:
        """At this step, and not done by a start that was stopped after it."""
        every, step = self.train.eval_every, self.progress.step
        at = bool(every) and step % every == 0 and 0 < step < self.train.num_steps
        return at and self.progress.evaluated_step != step

    def variants(self, totals: Totals) -> dict[str, int]:
        """Of train.export_at: the sparsities that are reached now and were not before, with this step."""
        reached = self.progress.reached
        if len(reached) == len(self.train.export_at):  # the usual case: the key is empty
            return {}
        now, end = totals.exported, totals.target  # units are whole, so the end may lie a little below the key's value
        values = {f"{value:g}": value for value in self.train.export_at}
        new = [name for name, value in values.items() if name not in reached and now >= min(value, end)]
        return dict.fromkeys(new, self.progress.step)

    def is_best(self, metrics: dict[str, float], final: bool) -> bool:
        """Whether these metrics make a best checkpoint; of equal ones that with the lower loss, else the later. Only
        models in their last phase count, so never a dense one, and never one whose metric is NaN."""
        if not final:
            return False
        mine = [self.sign * metrics[self.metric], -metrics.get("loss", 0.0)]
        best = self.progress.best
        if not math.isnan(mine[0]) and (best is None or mine[0] > best[0]):
            self.progress.worse = 0
        else:
            self.progress.worse += 1
            if best is None or math.isnan(mine[0]) or mine < [*best, -math.inf][:2]:
                return False
        self.progress.best = mine
        return True

    def note_if_best(self, metrics: dict[str, float], final: bool) -> bool:
        """`is_best`; if so, the progress that is written next says at which step."""
        best = self.is_best(metrics, final)
        if best:
            self.progress.best_step = self.progress.step
        return best

    def early_stop(self) -> bool:
        """Whether train.early_stopping_patience is used up; only evaluations in the last phase count (`is_best`)."""
        patience = self.train.early_stopping_patience
        return patience is not None and self.progress.worse >= patience
