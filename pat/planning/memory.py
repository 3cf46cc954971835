"""Bytes per rank at a ZeRO stage, of the rank that holds most, as DeepSpeed 0.19 allocates them.

# N ranks, P trained elements, F frozen ones, b of a bucket; e bytes of the forward's dtype, r of reduced gradients;
# sharded(P) is about P / N, touched(P) the whole parameters that the rank's shard touches

| | ZeRO 0 | 1 | 2 | 3 |
| --- | --- | --- | --- | --- |
| weights | e (P + F) | e (P + F) | e (P + F) | e sharded(P + F) + e x what is below the persistence threshold |
| gradients, in a backward | e P | e P | e touched(P), twice where micro-batches accumulate | e sharded(P) |
| gradients, before the step | e P | e touched(P) | e touched(P) | e sharded(P) |
| optimizer: fp32 weight (none in fp32 at ZeRO 0), two moments | 12 P | 12 sharded(P) | 12 sharded(P) | 12 sharded(P) |
| pruner, soft and hard | 5 or 9, and 1, per prunable element of the same shard | | | |
| bucket | none | e b | e b | r b, for the whole run |
| copies while it is reduced | e b and r b, after the backward | the same | e b and r b | r b |
| gathered, at most | | | | e x min(P + F, max_live_parameters) |
| step: the fp32 gradient of | all | the largest group's shard | the same | the largest sub-group's shard |

Gradients of ZeRO 1 and 2 are of whole parameters because DeepSpeed's shard of one is a view of it. At ZeRO 1 it reduces
them only after the last backward, one bucket after another. With `overlap_comm` it does so within that backward, as at
ZeRO 2, and has two buckets; the gradients of earlier micro-batches wait whole until then. A parameter larger than a
bucket is reduced alone, beside the empty bucket, at ZeRO 3 with a cast in place of the copy. Where gradients are
reduced in the forward's dtype there is one copy.
With the optimizer on the host gradients leave for it as soon as they are reduced, through a buffer for one parameter.
Source of the idea: Rajbhandari et al. 2019, arXiv:1910.02054; of the details: DeepSpeed's stage_1_and_2.py, stage3.py
and engine.py, and measured, tests/distributed/test_planning.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pat.planning.shapes import Shapes

ALIGNMENT = 2  # elements per rank to which DeepSpeed pads a flat group at ZeRO 1 and 2
FP32, MOMENTS = 4, 8  # bytes per element
AT_ZERO_0 = 500_000_000  # elements after which DeepSpeed reduces gradients there, whatever the user's bucket


@dataclass(frozen=True)
class Layout:
    """How a model is spread over ranks."""

    ranks: int
    stage: int
    itemsize: int = 2  # e
    reduce_itemsize: int = 4  # of the gradients' reduction
    offload: bool = False  # optimizer and pruner state in the host's memory
    accumulation: int = 1
    reduce_bucket: int = 500_000_000  # elements
    persistence_threshold: int = 100_000  # elements
    max_live: int = 1_000_000_000  # elements
    sub_group: int = 1_000_000_000  # elements, over all ranks
    overlap: bool = False  # gradients are reduced while the backward runs, at ZeRO 1 and 2


def with_user_keys(base: Layout, zero: dict[str, Any]) -> Layout:
    """With the user's own DeepSpeed keys (`zero_optimization`)."""
    keys = {
        "reduce_bucket": "reduce_bucket_size",
        "persistence_threshold": "stage3_param_persistence_threshold",
        "max_live": "stage3_max_live_parameters",
        "sub_group": "sub_group_size",
    }
    given = {
        name: int(float(value))
        for name, key in keys.items()
        if (value := zero.get(key, zero.get(key.removeprefix("stage3_")))) not in (None, "auto")
    }
    return replace(base, **given, overlap=zero.get("overlap_comm") is True)


@dataclass(frozen=True)
class RankMemory:
    """Bytes on the rank that holds most; `host` bytes are in the CPU's memory and not included."""

    weights: int
    gradients: int
    optimizer: int
    pruner_soft: int
    pruner_hard: int
    reduction: int
    gathered: int
    step: int
    teacher: int
    host: int
    activations: int = 0

    def total(self, soft: bool = True, cut: int = 0) -> int:
        """The peak: the largest of the backward, the optimizer's step and a calibrated cut, before which gradients may
        wait for the step."""
        state = self.weights + self.optimizer + self.teacher + (self.pruner_soft if soft else self.pruner_hard)
        return state + self.gradients + self.reduction + max(self.activations + self.gathered, self.step, cut)


def shard_numels(shapes: Shapes, layout: Layout) -> list[int]:
    """Elements of each group's shard, with its padding."""
    ranks = layout.ranks
    if layout.stage == 0:
        return [group.numel for group in shapes.groups]
    if layout.stage == 3:
        return [sum(_ceil(n, ranks) for n in group.numels) for group in shapes.groups]
    return [_ceil(group.numel, ALIGNMENT * ranks) * ALIGNMENT for group in shapes.groups]


def memory(shapes: Shapes, layout: Layout, activations: int = 0) -> RankMemory:
    """What a rank holds, by the table above."""
    e, shards = layout.itemsize, shard_numels(shapes, layout)
    shard = sum(shards)
    masters = 0 if layout.stage == 0 and e == FP32 else FP32
    optimizer = (masters + MOMENTS) * shard
    soft = sum(n * group.soft_bytes for n, group in zip(shards, shapes.groups, strict=True)) + shapes.gate_bytes
    hard = sum(n * group.hard_bytes for n, group in zip(shards, shapes.groups, strict=True)) + shapes.gate_bytes
    weights, gathered = e * shapes.every, 0
    if layout.stage == 3:
        every = [n for group in shapes.groups for n in group.numels] + list(shapes.frozen)
        whole = sum(n for n in every if n < layout.persistence_threshold)
        weights = e * (sum(_ceil(n, layout.ranks) for n in every) + whole)
        gathered = e * min(shapes.every - whole, layout.max_live)
    most, left = gradients(shapes, layout)
    after = left + (0 if layout.offload else _step(shards, layout))
    if _reduced_afterwards(layout):
        after = max(after, _while_reduced(shapes, layout, left))
    needed = RankMemory(
        weights=weights,
        gradients=most,
        optimizer=optimizer,
        pruner_soft=soft,
        pruner_hard=hard,
        reduction=_reduction(shapes, layout),
        gathered=gathered,
        step=max(0, after - most),
        teacher=e * (_ceil(shapes.teacher, layout.ranks) if layout.stage == 3 else shapes.teacher),
        host=0,
        activations=activations,
    )
    if not layout.offload:
        return needed
    # The gradients wait on the host as fp32, too.
    host = optimizer + soft + FP32 * shard + (e * shard if layout.stage == 3 else 0)
    return replace(needed, optimizer=0, pruner_soft=0, pruner_hard=0, host=host)


def gradients(shapes: Shapes, layout: Layout) -> tuple[int, int]:
    """Bytes at most during a backward, without the bucket, and what is left of them before the step."""
    e, accumulates = layout.itemsize, layout.accumulation > 1
    whole = e * shapes.trained
    if layout.stage == 0:
        return whole, whole
    if layout.stage == 3:
        kept = 0 if layout.offload else e * sum(shard_numels(shapes, layout))
        return kept, kept
    kept = 0 if layout.offload else e * max(touched(shapes, layout, rank) for rank in range(layout.ranks))
    oversize = e * max((n for n in _numels(shapes) if n > layout.reduce_bucket), default=0)
    if _reduced_afterwards(layout):
        return whole, kept
    if layout.stage == 1:
        return kept + (whole if accumulates else oversize), kept
    return kept * (1 + accumulates) + oversize, kept


def touched(shapes: Shapes, layout: Layout, rank: int) -> int:
    """Elements of all parameters that lie at least partly in this rank's shards, at ZeRO 1 and 2."""
    numel = 0
    for group, width in zip(shapes.groups, shard_numels(shapes, layout), strict=True):
        low, high, start = rank * width, (rank + 1) * width, 0
        for n in group.numels:
            if start < high and start + n > low:
                numel += n
            start += n
    return numel


def bucket_bytes(layout: Layout) -> int:
    """Of DeepSpeed's buckets for the reduction, whatever the model's size."""
    if layout.stage == 0:
        return 0
    each = layout.reduce_itemsize if layout.stage == 3 else layout.itemsize
    return layout.reduce_bucket * each * (1 + (layout.overlap and layout.stage < 3))


def _reduction(shapes: Shapes, layout: Layout) -> int:
    """The buckets, and what else is there during a backward to reduce gradients."""
    if layout.stage == 0:
        return 0
    largest = max(_numels(shapes), default=0)
    leaving = layout.itemsize * largest if layout.offload and layout.stage < 3 else 0
    copies = 0
    if not _reduced_afterwards(layout):
        full = min(layout.reduce_bucket, shapes.trained)
        copies = max(_copies(layout, numel) for numel in (full, max(full, largest)))
    return bucket_bytes(layout) + copies + leaving


def _copies(layout: Layout, numel: int) -> int:
    """Bytes of the copies of that many elements while they are reduced; at ZeRO 3 with the gradient that does not fit
    in the bucket."""
    e, r = layout.itemsize, layout.reduce_itemsize
    cast = r * (e != r)
    if layout.stage < 3:
        return (e + cast) * numel
    if numel <= layout.reduce_bucket:
        return r * numel
    return (e + cast + r * (numel % layout.ranks > 0)) * numel


def _reduced_afterwards(layout: Layout) -> bool:
    return layout.stage == 0 or (layout.stage == 1 and not layout.overlap)


def _while_reduced(shapes: Shapes, layout: Layout, kept: int) -> int:
    """Bytes at most while one bucket after another is reduced, without the bucket; `kept` of what is reduced."""
    if layout.stage == 0:
        return kept + _copies(layout, min(shapes.trained, AT_ZERO_0 + max(_numels(shapes), default=0)))
    e, waiting, most, reduced = layout.itemsize, shapes.trained, 0, 0
    for numel in _buckets(_numels(shapes), layout.reduce_bucket):
        beside = waiting - numel if numel <= layout.reduce_bucket else waiting
        most = max(most, reduced + e * beside + _copies(layout, numel))
        waiting, reduced = waiting - numel, kept
    return most


def _buckets(numels: list[int], size: int) -> Iterator[int]:
    """Elements of each reduction: as many parameters as fit in a bucket, or a larger one alone."""
    filled = 0
    for n in numels:
        if filled and filled + n > size:
            yield filled
            filled = 0
        filled += n
    yield filled


def _numels(shapes: Shapes) -> list[int]:
    return [n for group in shapes.groups for n in group.numels]


def _step(shards: list[int], layout: Layout) -> int:
    if layout.stage == 0:
        return 0 if layout.itemsize == FP32 else FP32 * sum(shards)
    largest = max(shards, default=0)
    return FP32 * (min(largest, _ceil(layout.sub_group, layout.ranks)) if layout.stage == 3 else largest)


def _ceil(n: int, parts: int) -> int:
    return -(-n // parts)
