"""A straight line to the next cut, and back up there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pat.learning_rates import LearningRate, Moment


@dataclass(frozen=True)
class PerCut(LearningRate):
    """1 - s, s the share of the steps from the last cut to the next one, or to the end of the run.

    A high rate heals what a cut breaks. Cuts are those that the schedule plans: a mask that catches up after a skipped
    step comes a step later than the rate. Sources: oBERT, arXiv:2203.07259; GMP*, arXiv:2210.06384.
    """

    name: str = "per_cut"

    follows_cuts: ClassVar[bool] = True

    def at(self, moment: Moment) -> float:
        """1 at each cut and at the end of the warm-up; a cut within the warm-up changes nothing."""
        return 1.0 - moment.done_since_cut

    def in_words(self, pruned: bool) -> str:
        """The line, and that it goes up again at each cut."""
        return "linear, up again at each cut (per_cut)" if pruned else "linear (per_cut, without a cut)"
