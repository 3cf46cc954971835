"""What a parameter is outside of DeepSpeed: its dtype by name, its logical shape."""

from __future__ import annotations

from typing import Any

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def logical_shape(param: Any) -> tuple[int, ...]:
    """Shape of a parameter, also of one that ZeRO 3 has partitioned."""
    return tuple(param.ds_shape) if hasattr(param, "ds_shape") else tuple(param.shape)


def logical_numel(param: Any) -> int:
    """Elements of a parameter, also of one that ZeRO 3 has partitioned."""
    return int(param.ds_numel) if hasattr(param, "ds_numel") else param.numel()
