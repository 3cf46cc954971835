"""Floating-point operations of matrix products and of attention, as torch counts them, and of what it leaves out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers.integrations import moe


def _experts(rows: Sequence[int], weights: Sequence[int], *_: Any, **__: Any) -> int:
    """Of rows (s, i), each with the weights (e, i, o) of its expert."""
    return 2 * rows[0] * weights[1] * weights[2]


_LEFT_OUT: Any = {  # by shapes: attention on a CPU, and experts
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *qkv, **_: sdpa_flop_count(*qkv[:3]),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda *grad_and_qkv, **_: sdpa_backward_flop_count(*grad_and_qkv[:4])
    ),
}
EXPERTS = hasattr(torch.ops.transformers, "grouped_mm_fallback_backward")  # since transformers 5.23
if EXPERTS:
    _LEFT_OUT[torch.ops.transformers.grouped_mm_fallback] = _experts
    _LEFT_OUT[torch.ops.transformers.grouped_mm_fallback_backward] = lambda *shapes, **_: 2 * _experts(*shapes)


def counter() -> FlopCounterMode:
    """Counts while it is entered; `get_total_flops()` at any time."""
    return FlopCounterMode(display=False, custom_mapping=_LEFT_OUT)


@contextmanager
def experts_in_any_dtype() -> Iterator[None]:
    """Without storage torch's product of rows with their experts takes bf16 only: that of transformers instead, which
    saves the same for the backward, and is counted."""
    name = "_can_use_grouped_mm"
    known = getattr(moe, name)
    if EXPERTS:
        setattr(moe, name, lambda *_: False)
    try:
        yield
    finally:
        setattr(moe, name, known)
