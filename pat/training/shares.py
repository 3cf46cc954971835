"""The weight of each micro-batch, so that the loss of a step is a mean over its whole global batch.

DeepSpeed averages the losses of A micro-batches on R ranks. Those are means over n_m answers each, so that an answer in
a micro-batch with few of them would count for more than another. With the share n_m A R / N of each loss,
N = sum of all n_m, the average is the sum over all answers / N. Where all n_m are equal every share is exactly 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pat.common.comm import Comm
from pat.tasks.base import Batch, Task

Shares = tuple[Tensor | float, Tensor | float]  # of a mean over what is supervised, of a mean over tokens


def shares(task: Task, batches: Sequence[Batch], world: Comm) -> Tensor:
    """(A, 2) fp32: the shares of this rank's losses: of means over what is supervised, and over tokens. Collective."""
    counts = torch.stack([torch.stack([task.supervised(batch).sum(), tokens(batch).sum()]) for batch in batches])
    counts = counts.double()
    total = world.sum(counts.sum(0))
    return (counts * (len(batches) * world.world_size) / total).float()


def tokens(batch: Batch) -> Tensor:
    """(b, s) fp32: 1 for a token, 0 for padding."""
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"], dtype=torch.float32) if mask is None else mask.float()
