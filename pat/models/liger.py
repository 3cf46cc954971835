"""Liger's Triton kernels for RMSNorm, the rotary embedding and the gated MLP, in a model that is already built.

They replace what a module computes, not its parameters or its linear maps: masks, gates, adapters and checkpoints see
the same model. Liger's own losses stay off, because the task computes the loss (`task.loss_chunk_tokens` keeps the
logits of all tokens out of memory, the teacher's too).

Source: Hsu et al. 2024, arXiv:2410.10989.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch
from transformers import PreTrainedModel

KEY = "model.use_liger_kernel"


def check(model_type: str, here: bool = True) -> None:
    """ValueError where the kernels cannot run, are not installed, or do not exist for this kind of model. here=False:
    they will run on other machines."""
    if here and not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"{KEY}=true needs a GPU: its kernels are Triton's. Leave it out on this machine")
    if find_spec("liger_kernel") is None:
        raise ValueError(f"{KEY}=true needs Liger: pip install 'pat-deepspeed[liger]', or leave it out")
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as known  # pyright: ignore[reportMissingImports]

    if model_type not in known:
        raise ValueError(f"{KEY}=true: Liger has no kernels for a {model_type}; supported: {', '.join(sorted(known))}")


def apply(model: PreTrainedModel) -> None:
    """Let the modules of this model compute by Liger's kernels. ValueError as `check`."""
    check(model.config.model_type)
    # The function that transformers' Trainer calls.
    from liger_kernel.transformers import (  # pyright: ignore[reportMissingImports]
        _apply_liger_kernel_to_instance as patch,
    )

    patch(model=model, cross_entropy=False, fused_linear_cross_entropy=False)
