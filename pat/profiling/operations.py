"""FLOPs of a folder's model, counted by torch on tensors without data, or where that fails by the anatomy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from pat.export.loader import narrowed
from pat.models import families
from pat.models.operations import counter, experts_in_any_dtype
from pat.pruning.structures import costs


def flops(folder: Path, tokens: int) -> int | None:
    """Of the forward of one prompt, matrix products only, 2 per multiply-add; None for a model that neither method can
    count.

    Attention counts as full products (eager), as in pat.pruning.structures.costs.flops.
    """
    try:
        model = on_meta(folder)
        with torch.no_grad(), experts_in_any_dtype(), counter() as counted:
            model(input_ids=torch.zeros(1, tokens, dtype=torch.long, device="meta"))
    except (RuntimeError, NotImplementedError, TypeError):  # its forward looks at values, as GPT-2's does
        return _by_anatomy(folder, tokens)
    return int(counted.get_total_flops())


def _by_anatomy(folder: Path, tokens: int) -> int | None:
    try:
        anatomy = families.anatomy(on_meta(folder))
    except ValueError:
        return None
    return int(costs.flops(anatomy, tokens).total(costs.dense_widths(anatomy)))


def on_meta(folder: Path) -> Any:
    """The model in a folder, without its weights."""
    config: Any = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, attn_implementation="eager")
    stock = getattr(transformers, config.architectures[0])
    cls = stock if getattr(config, "pat_widths", None) is None else narrowed(stock)
    with torch.device("meta"):
        return cls(config).eval()
