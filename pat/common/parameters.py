"""A parameter as it is without DeepSpeed: its dtype by name, its logical shape and its orientation."""

from __future__ import annotations

from typing import Any

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def logical_shape(param: Any) -> tuple[int, ...]:
    """Shape of a parameter, also of one that ZeRO 3 has partitioned."""
    return tuple(param.ds_shape) if hasattr(param, "ds_shape") else tuple(param.shape)


def is_conv1d(module: torch.nn.Module) -> bool:
    """Whether a linear map is of GPT-2's kind, whose weight is stored as (inputs, outputs)."""
    return type(module).__name__ == "Conv1D"


def logical_numel(param: Any) -> int:
    """Elements of a parameter, also of one that ZeRO 3 has partitioned."""
    return int(param.ds_numel) if hasattr(param, "ds_numel") else param.numel()
