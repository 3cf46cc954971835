"""Which weights a start makes anew, as the model that it begins with has none for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safetensors import SafetensorError
from transformers import PretrainedConfig

from pat.models import adapters, heads
from pat.models.build import UNFIT, quiet
from pat.schema import ModelConfig

if TYPE_CHECKING:
    from pat.tasks.base import Task

SHOWN = 6  # names


def note(cfg: ModelConfig, task: Task, config: PretrainedConfig) -> str | None:
    """A sentence that names them; None where there are none, or the files are not safetensors on this machine. Only
    their headers are read. A head that model.replace_head renews has a sentence of its own."""
    if cfg.path is None or cfg.init != "pretrained":
        return None
    with quiet():
        try:
            _, report = task.auto_model.from_pretrained(
                cfg.path,
                config=config,
                revision=cfg.revision,
                device_map="meta",
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **heads.without_head(cfg),
            )
        except (OSError, SafetensorError, RuntimeError, *UNFIT):  # the start says it, in a sentence of its own
            return None
    renewed = adapters.HEADS if cfg.replace_head else ()
    names = sorted(name for name in report["missing_keys"] if name.split(".")[0] not in renewed)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"new, as {cfg.path} has no weights for them: {', '.join(names[:SHOWN])}{more}" if names else None
