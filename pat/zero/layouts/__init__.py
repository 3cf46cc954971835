"""ZeRO's layouts: which piece of which parameter lies where in this rank's flat fp32 shards.

How DeepSpeed lays out masters, gradients and forward copies in memory is known here and nowhere else; how it lays them
out in files is known to `pat.zero.checkpoint_files`. Everything else sees `Shard` (a flat fp32 tensor that the base
optimizer steps), `Segment` (a run of one parameter inside it) and the methods of `ZeroLayout`.

base.py         ZeroLayout, with what all of them share
partitioned.py  Zero12, Zero3: this rank's part of a param group, or of a sub-group
replicated.py   Zero0LowPrecision, Zero0Fp32: whole on every rank
"""

from __future__ import annotations

from typing import Any

import torch

from pat.zero.layouts.base import Piece, Segment, Shard, ZeroLayout, copy_common
from pat.zero.layouts.partitioned import Zero3, Zero12
from pat.zero.layouts.replicated import Zero0Fp32, Zero0LowPrecision

__all__ = ["Piece", "Segment", "Shard", "ZeroLayout", "copy_common", "layout_of"]

_BY_OPTIMIZER: dict[str, type[ZeroLayout]] = {
    "DeepSpeedZeroOptimizer": Zero12,
    "DeepSpeedZeroOptimizer_Stage3": Zero3,
    "FP16_UnfusedOptimizer": Zero0LowPrecision,
    "FP16_Optimizer": Zero0LowPrecision,
}


def layout_of(engine: Any) -> ZeroLayout:
    """The layout that a DeepSpeed engine has. ValueError where pat does not know it."""
    optimizer = type(engine.optimizer).__name__
    if optimizer in _BY_OPTIMIZER:
        return _BY_OPTIMIZER[optimizer](engine)
    if engine.optimizer is engine.basic_optimizer:
        params = [param for group in engine.basic_optimizer.param_groups for param in group["params"]]
        other = next((param.dtype for param in params if param.dtype != torch.float32), None)
        if other is not None:
            raise ValueError(
                f"the model trains in {str(other).removeprefix('torch.')}, without fp32 copies of its weights: enable "
                "bf16 or fp16 in DeepSpeed's config, or load the model with dtype=torch.float32"
            )
        return Zero0Fp32(engine)
    raise ValueError(
        f"DeepSpeed chose {optimizer}, a layout in which pat would not know which weights it prunes; "
        "use ZeRO 0 to 3 without data_types.grad_accum_dtype, ZenFlow or SuperOffload"
    )
