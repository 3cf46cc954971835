"""The learning rate's schedule: a factor in [0, 1] of the base rate, by step."""

from __future__ import annotations

import math

from pat.schema import OptimConfig


def lr_factor(t: int, num_steps: int, optim: OptimConfig) -> float:
    """Learning-rate factor in [0, 1] of step t: linear warm-up, then constant, or decay to `min_lr_ratio`."""
    warmup = round(optim.warmup * num_steps) if 0 < optim.warmup < 1 else int(optim.warmup)
    if t < warmup:
        return (t + 1) / warmup
    done = (t - warmup) / max(1, num_steps - warmup)
    if optim.lr_schedule == "constant":
        return 1.0
    if optim.lr_schedule == "linear":
        decayed = 1.0 - done
    else:
        decayed = 0.5 * (1.0 + math.cos(math.pi * done))
    return optim.min_lr_ratio + (1.0 - optim.min_lr_ratio) * decayed
