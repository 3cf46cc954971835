"""The learning rate's schedule: a factor in [0, 1] of the base rate, by step."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

from pat.schema import OptimConfig


def lr_factor(
    t: int,
    num_steps: int,
    optim: OptimConfig,
    cuts: Sequence[int] = (),  # steps at which something is pruned, rising
) -> float:
    """Learning-rate factor in [0, 1] of step t: linear warm-up, then constant, or decay to `min_lr_ratio`.

    `per_cut` begins again at 1 with each cut and decays linearly to the next one, or to the end of the run, so that
    what a cut breaks is healed at a high rate. Sources: oBERT, arXiv:2203.07259; GMP*, arXiv:2210.06384.
    """
    warmup = round(optim.warmup * num_steps) if 0 < optim.warmup < 1 else int(optim.warmup)
    if t < warmup:
        return (t + 1) / warmup
    begin, end = warmup, num_steps
    if optim.lr_schedule == "per_cut":
        bounds = [warmup, *(cut for cut in cuts if cut > warmup), num_steps]
        place = bisect_right(bounds, t, hi=len(bounds) - 1)
        begin, end = bounds[place - 1], bounds[place]
    done = (t - begin) / max(1, end - begin)
    if optim.lr_schedule == "constant":
        return 1.0
    if optim.lr_schedule in ("linear", "per_cut"):
        decayed = 1.0 - done
    else:
        decayed = 0.5 * (1.0 + math.cos(math.pi * done))
    return optim.min_lr_ratio + (1.0 - optim.min_lr_ratio) * decayed
