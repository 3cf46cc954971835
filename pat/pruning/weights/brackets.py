"""A sample of all ranks' scores brackets the k-th score of every group.

# G groups, W ranks, m sampled scores; a segment: see `ScoredSegment`
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pat.common.comm import Comm
from pat.common.typed import ints, of_numpy, split
from pat.pruning.types import ScoredSegment

SAMPLE = 1 << 17  # scores sampled for one group over all ranks, at least; shared out over several groups,
SAMPLE_PER_GROUP = 1 << 13  # but never below this
SIGMAS = 3.5  # half width of the bracket, in standard deviations of a sampled rank: 1 in 2,000 misses


def sizes_by_rank(segments: Sequence[ScoredSegment], groups: Sequence[int], num_groups: int, comm: Comm) -> Tensor:
    """(W, G) scores that each rank holds of each group. Collective."""
    sizes = torch.zeros(comm.world_size, num_groups, dtype=torch.int64)
    for segment, g in zip(segments, groups, strict=True):
        sizes[comm.rank, g] += segment.numel
    return comm.sum(sizes)


def find_brackets(
    segments: Sequence[ScoredSegment],
    groups: Sequence[int],
    num_keep: Tensor,  # (G,)
    sizes: Tensor,  # (W, G)
    comm: Comm,
) -> list[tuple[float, float]]:
    """(low, high) of each group: very probably the k-th score lies between, and little else. Collective."""
    totals = sizes.sum(0)
    target = max(SAMPLE // len(totals), SAMPLE_PER_GROUP)
    strides = (totals // target).clamp(min=1)
    counts = (sizes // strides).t()  # (G, W) samples of each rank
    offsets = counts.flatten().cumsum(0).view_as(counts) - counts
    sample = torch.zeros(int(counts.sum()))
    for g, stride in enumerate(ints(strides)):
        mine = [segment for segment, of in zip(segments, groups, strict=True) if of == g]
        begin, num = int(offsets[g, comm.rank]), int(counts[g, comm.rank])
        _sample(mine, stride, sample[begin : begin + num])
    samples = split(comm.sum(sample), ints(counts.sum(1)))
    return [_bracket(p.numpy(), k, n) for p, k, n in zip(samples, ints(num_keep), ints(totals), strict=True)]


def _sample(segments: Sequence[ScoredSegment], stride: int, out: Tensor) -> None:
    """One score of every `stride`, at a pseudo-random place, so that no period in the weights can hide."""
    jitter = np.random.default_rng(0).integers(0, stride, out.numel())
    positions = of_numpy(np.arange(out.numel()) * stride + jitter)  # rising, in the concatenated segments
    ends = torch.tensor([segment.numel for segment in segments], dtype=torch.int64).cumsum(0)
    begin = 0
    for segment, end, stop in zip(segments, ints(ends), ints(torch.searchsorted(positions, ends)), strict=True):
        inside = positions[begin:stop] - (end - segment.numel)
        out[begin:stop] = segment.scores.detach()[inside.to(segment.scores.device)].cpu()
        begin = stop


def _bracket(
    sample: np.ndarray,  # (m,)
    num_keep: int,
    total: int,
) -> tuple[float, float]:
    """Two scores of the sample, SIGMAS * sqrt(m p (1 - p)) ranks to either side of the expected one, p = k / n."""
    if num_keep in (0, total):
        edge = -math.inf if num_keep else math.inf
        return edge, edge
    m, p = len(sample), num_keep / total
    margin = SIGMAS * math.sqrt(m * p * (1 - p)) + 1
    low, high = math.floor(m * (1 - p) - margin), math.ceil(m * (1 - p) + margin)  # ranks from the lowest
    at = np.partition(sample, [max(low, 0), min(high, m - 1)]) if m else sample
    return (float(at[low]) if low >= 0 else -math.inf), (float(at[high]) if high < m else math.inf)
