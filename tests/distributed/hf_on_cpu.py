"""HF Trainer with DeepSpeed on CPU ranks, for tests: Accelerate and transformers only choose a backend on accelerators.

Nothing else is replaced: what follows (TrainingArguments, Accelerator.prepare, the loop, checkpoints) is theirs.
"""

from __future__ import annotations

from typing import Any

from accelerate.state import PartialState
from accelerate.utils import DistributedType
from transformers import training_args


def allow() -> None:
    """gloo as the backend, and bf16 without a GPU."""

    def prepare_backend(*_: Any, **__: Any) -> tuple[str, DistributedType]:
        return "gloo", DistributedType.MULTI_CPU

    PartialState._prepare_backend = prepare_backend
    training_args.__dict__["is_torch_bf16_gpu_available"] = lambda: True
