"""When a run counts as diverged: by its loss, and by its steps without a finite gradient."""

from __future__ import annotations

import math

from pat.pruning.schedules import Ramp
from pat.schema import LATELY, Config
from pat.training.progress import Progress

KNOWS = 0.99  # of the loss of guessing: a model that has learned something is below
FP16_START = 25  # fp16's loss scale begins at 2^16 and halves at each skipped step, until the first finite gradient


class Diverged(RuntimeError):
    """The loss or the gradients are NaN, infinite or out of bounds."""


def loss_limit(
    config: Config,
    initial: float | None,  # mean loss of the first step, so before any update; None: not known yet
    chance: float,  # the loss of guessing
    worse: float,  # Task.worse
) -> float:
    """train.max_loss; where it is null, `worse` times max(loss before the first step, chance)."""
    return config.train.max_loss or worse * max(initial or 0.0, chance) or math.inf


def bounded_from(config: Config) -> int:
    """The step from which the loss has its final make-up: where hidden states of a teacher ramp in, the ramp's end."""
    distill = config.distill
    if distill.teacher is None or not distill.hidden_weight:
        return 0
    return Ramp.of("distill", distill.start, distill.end, config.train.num_steps).end


def settling(config: Config, progress: Progress) -> bool:
    """Whether fp16 still looks for its loss scale: no step has been applied yet."""
    return config.engine.dtype == "fp16" and progress.skipped == progress.step


def note_skipped(config: Config, progress: Progress) -> None:
    """Step `progress.step` was skipped for its gradients. Raises Diverged when too many were."""
    step = progress.step
    progress.skipped += 1
    if settling(config, progress):
        if progress.skipped > FP16_START:
            raise Diverged(
                f"all of the first {step} steps had an infinite or NaN gradient, at any of fp16's loss scales"
            )
        return
    progress.skipped_lately = [*(each for each in progress.skipped_lately if each > step - LATELY), step]
    count, allowed = len(progress.skipped_lately), config.train.max_skipped
    if count > allowed:
        raise Diverged(
            f"{count} of the last {min(step, LATELY)} steps were skipped for an infinite or NaN gradient, the last at "
            f"step {step}: more than {allowed} (train.max_skipped)"
        )


def is_bad(loss: float, limit: float) -> bool:
    """NaN, infinite or above the limit."""
    return not math.isfinite(loss) or loss > limit


class LossBound:
    """The most that the mean loss between two logged lines may be."""

    def __init__(self, config: Config, progress: Progress, chance: float, worse: float) -> None:
        self.config, self.progress, self.chance, self.worse = config, progress, chance, worse
        self.starts = bounded_from(config)
        self.last: float | None = None  # the mean loss of the last line of this start

    @property
    def limit(self) -> float:
        """Above it the run counts as diverged."""
        return loss_limit(self.config, self.progress.initial_loss, self.chance, self.worse)

    @property
    def is_measured(self) -> bool:
        """Whether the step that is done now says what the loss was before it was trained."""
        return self.progress.initial_loss is None or self.progress.step - 1 == self.starts > 0

    def measure(self, loss: float) -> str | None:
        """Take the mean loss of such a step; returns a sentence about it."""
        if not math.isfinite(loss):
            return None
        self.progress.initial_loss = max(loss, self.progress.initial_loss or loss)
        return (
            f"loss before the first step {loss:.4g}; above {self.limit:.4g} the run stops as diverged (train.max_loss)"
        )

    def learned_nothing(self) -> str | None:
        """A warning where the last training loss is that of a model that knows nothing, or worse.

        Not the evaluation's: a classifier that is too sure of itself has a high loss there, and yet it has learned. A
        teacher's part is in the loss: nothing is said there.
        """
        loss, distill = self.last, self.config.distill
        taught = distill.teacher or distill.cache
        if loss is None or not self.chance or taught or loss < KNOWS * self.chance:
            return None
        return (
            f"the training loss at the end, {loss:.4g}, is no better than guessing ({self.chance:.4g}): the model has "
            "learned nothing. Try a lower optim.lr, more steps, or less sparsity"
        )

    def refuse(self, loss: float) -> None:
        """Raises Diverged when the mean loss is NaN, infinite or above the limit."""
        step, limit, self.last = self.progress.step, self.limit, loss
        if is_bad(loss, limit if step > self.starts else math.inf):
            raise Diverged(f"the loss is {loss:.4g} at step {step}, above {limit:.4g} (train.max_loss)")
