"""Bytes that a rank sends: per optimizer step, and when masks are selected again.

# N ranks, P trained elements, F frozen ones, A micro-batches; bytes: e of the forward's dtype, r of reduced gradients

A ring moves n bytes with 2 n (N - 1) / N sent per rank for an all-reduce, n (N - 1) / N for an all-gather or a
reduce-scatter. DeepSpeed 0.19 (counted at its backend, tests/distributed/test_planning.py):

    ZeRO 0   all-reduce r P
    ZeRO 1   all-reduce r P, all-gather e P
    ZeRO 2   A all-reduces of r P, all-gather e P
    ZeRO 3   A (1 or 2 all-gathers of e (P + F), a reduce-scatter of r P); one gather where all fits max_live_parameters
"""

from __future__ import annotations

from pat.planning.memory import Layout
from pat.planning.shapes import Shapes
from pat.pruning.weights.brackets import SAMPLE, SAMPLE_PER_GROUP
from pat.pruning.weights.selection import DIGITS

READ_PASSES = 2  # over the scores: scan and write; the ranking itself and narrowing a small copy are not counted


def bytes_per_step(shapes: Shapes, layout: Layout) -> float:
    """Sent by one rank in one optimizer step, the teacher's gathers included."""
    share = (layout.ranks - 1) / layout.ranks
    gradients, weights = layout.reduce_itemsize * shapes.trained, layout.itemsize * shapes.trained
    if layout.stage == 0:
        return 2 * gradients * share
    if layout.stage < 3:
        times = layout.accumulation if layout.stage == 2 else 1
        return (2 * gradients * times + weights) * share
    gathers = 1 if shapes.every <= layout.max_live else 2
    gathered = layout.itemsize * (gathers * shapes.every + shapes.teacher)
    return layout.accumulation * (gathered + gradients) * share


def bytes_per_selection(
    ranks: int,
    groups: int,  # rankings: 1 of scope global, one per matrix of scope matrix
    numel: int,
) -> int:
    """The size of all that one exact selection all-reduces, on each rank; little of it depends on the model.

    The 8 bytes per matrix for counts of held scores are left out; the rest is
    sizes (N, G), sample (m), tally (4, G) and counts (G, 2^11 + 2^11 + 2^10), kept (G), all int64 but for the sample.
    """
    if ranks == 1:
        return 0
    each = numel // groups
    sample = groups * (each // max(1, each // max(SAMPLE // groups, SAMPLE_PER_GROUP)))
    digits = sum(1 << bits for _, bits in DIGITS)
    return 8 * (ranks * groups + 4 * groups + digits * groups + groups) + 4 * sample


def bytes_read_per_selection(shapes: Shapes, layout: Layout) -> float:
    """Of fp32 scores and flags that a rank reads or writes for one selection."""
    share = 1 if layout.stage == 0 else layout.ranks
    return shapes.prunable * (4 * READ_PASSES + 1) / share
