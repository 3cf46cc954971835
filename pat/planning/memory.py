"""Bytes per rank at a ZeRO stage, of the rank that holds most, as DeepSpeed 0.19 allocates them.

# N ranks, P trained elements, F frozen ones, e bytes of the forward's dtype; sharded(P) is about P / N

| | ZeRO 0 | 1, 2 | 3 |
| --- | --- | --- | --- |
| weights | e (P + F) | e (P + F) | e sharded(P + F) + e x what is below the persistence threshold |
| gradients, before the step | e P | e x the whole parameters that the rank's shard touches | e sharded(P) |
| optimizer: fp32 weight (none in fp32 at ZeRO 0), two moments | 12 P | 12 sharded(P) | 12 sharded(P) |
| pruner, soft and hard | 5 or 9, and 1, per prunable element of the same shard | | |
| reduction buffers | in the gradients | bucket x e (fp32 at ZeRO 1) | bucket x the reduced dtype, for the whole run |
| gathered, at most | | | e x min(P + F, max_live_parameters) |
| step: the fp32 gradient of | all | the largest group's shard | the largest sub-group's shard |

Gradients of ZeRO 1 and 2 are of whole parameters because DeepSpeed's shard of one is a view of it. Source of the idea:
Rajbhandari et al. 2019, arXiv:1910.02054; of the details: measured, tests/distributed/test_planning.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pat.planning.shapes import Shapes

ALIGNMENT = 2  # elements per rank to which DeepSpeed pads a flat group at ZeRO 1 and 2
FP32, MOMENTS = 4, 8  # bytes per element


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
    return replace(base, **given)


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

    def total(self, soft: bool = True) -> int:
        """The peak: the larger of the backward and the optimizer's step."""
        state = self.weights + self.optimizer + self.teacher + (self.pruner_soft if soft else self.pruner_hard)
        return state + self.gradients + self.reduction + max(self.activations + self.gathered, self.step)


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
    needed = RankMemory(
        weights=weights,
        gradients=_gradients(shapes, layout, shard),
        optimizer=optimizer,
        pruner_soft=soft,
        pruner_hard=hard,
        reduction=_reduction(layout),
        gathered=gathered,
        step=_step(shards, layout),
        teacher=e * (_ceil(shapes.teacher, layout.ranks) if layout.stage == 3 else shapes.teacher),
        host=0,
        activations=activations,
    )
    if not layout.offload:
        return needed
    # The gradients wait on the host as fp32, too.
    host = optimizer + soft + FP32 * shard + (needed.gradients if layout.stage == 3 else 0)
    return replace(needed, gradients=0, optimizer=0, pruner_soft=0, pruner_hard=0, step=0, host=host)


def _gradients(shapes: Shapes, layout: Layout, shard: int) -> int:
    if layout.stage == 0:
        return layout.itemsize * shapes.trained
    if layout.stage == 3:
        return layout.itemsize * shard
    return layout.itemsize * max(touched(shapes, layout, rank) for rank in range(layout.ranks))


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


def _reduction(layout: Layout) -> int:
    if layout.stage == 0 or layout.ranks == 1:
        return 0
    fp32 = layout.stage in (1, 3)
    return layout.reduce_bucket * (layout.reduce_itemsize if fp32 else layout.itemsize)


def _step(shards: list[int], layout: Layout) -> int:
    if layout.stage == 0:
        return 0 if layout.itemsize == FP32 else FP32 * sum(shards)
    largest = max(shards, default=0)
    return FP32 * (min(largest, _ceil(layout.sub_group, layout.ranks)) if layout.stage == 3 else largest)


def _ceil(n: int, parts: int) -> int:
    return -(-n // parts)
