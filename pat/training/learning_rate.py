"""The learning rate of a step, as a factor in [0, 1] of the base rate."""

from __future__ import annotations

from collections.abc import Sequence

from pat import learning_rates
from pat.learning_rates import Moment
from pat.schema import OptimConfig


def lr_factor(
    t: int,
    num_steps: int,
    optim: OptimConfig,
    cuts: Sequence[int] = (),  # steps at which something is pruned, rising
) -> float:
    """Of step t: a linear warm-up of w steps, then what the schedule says, from 1 down to `min_lr_ratio` m.

    (t + 1) / w below w, then m + (1 - m) at(t), with at(t) in [0, 1] the schedule's.
    """
    warmup = learning_rates.warmup_steps(optim.warmup, num_steps)
    if t < warmup:
        return (t + 1) / warmup
    schedule = learning_rates.build(optim.lr_schedule)
    return optim.min_lr_ratio + (1.0 - optim.min_lr_ratio) * schedule.at(Moment(t, num_steps, warmup, tuple(cuts)))
