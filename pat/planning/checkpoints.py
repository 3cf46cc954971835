"""Bytes of a checkpoint on disk, over all ranks.

# P trained elements, F frozen ones, e bytes of the forward's dtype, p prunable elements

    DeepSpeed   ZeRO 0: e (P + F) and 12 P, 8 P in fp32; 1, 2: e (P + F) and 12 P; 3: e F and 12 P
    pat, soft   4 p dense weights, 4 p scores where the criterion keeps some, p / 8 flags
    pat, hard   p / 8 flags
"""

from __future__ import annotations

from dataclasses import dataclass

from pat.planning.memory import FP32, MOMENTS, Layout
from pat.planning.shapes import Shapes


@dataclass(frozen=True)
class CheckpointSize:
    """Bytes of one checkpoint on disk, over all ranks, in the soft and in the hard phase."""

    soft: int
    hard: int


def checkpoint_size(shapes: Shapes, layout: Layout) -> CheckpointSize:
    """By the table above; file headers are not counted."""
    masters = 0 if layout.stage == 0 and layout.itemsize == FP32 else FP32
    module = sum(shapes.frozen) if layout.stage == 3 else shapes.every
    dense = layout.itemsize * module + (masters + MOMENTS) * shapes.trained
    flags = shapes.gate_bytes + shapes.prunable // 8
    moving = sum(group.numel * (FP32 + FP32 * group.score) for group in shapes.groups if group.prunable)
    return CheckpointSize(dense + flags + moving, dense + flags)
