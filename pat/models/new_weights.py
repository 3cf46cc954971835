"""Which weights a start makes anew, as the model that it begins with has none for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from transformers import PretrainedConfig

from pat.models import heads
from pat.models.build import UNFIT, quiet
from pat.schema import Config, ModelConfig

if TYPE_CHECKING:
    from pat.tasks.base import Task

SHOWN = 6  # names


def names(cfg: ModelConfig, task: Task, config: PretrainedConfig) -> list[str]:
    """Their names, sorted; none where the files are not safetensors on this machine. Only their headers are read. A
    head that model.replace_head renews is not among them."""
    if cfg.path is None or cfg.init != "pretrained":
        return []
    with quiet():
        try:
            model, report = task.auto_model.from_pretrained(
                cfg.path,
                config=config,
                revision=cfg.revision,
                trust_remote_code=False,
                device_map="meta",
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **heads.without_head(cfg, task.auto_model, config),
            )
        except (OSError, SafetensorError, RuntimeError, *UNFIT):  # the start says it, in a sentence of its own
            return []
    return sorted(n for n in report["missing_keys"] if not (cfg.replace_head and heads.is_of_head(type(model), n)))


def note(cfg: ModelConfig, new: Sequence[str]) -> str | None:
    """A sentence that names them; None where there are none."""
    more = f" and {len(new) - SHOWN} more" if len(new) > SHOWN else ""
    return f"new, as {cfg.path} has no weights for them: {', '.join(new[:SHOWN])}{more}" if new else None


def check_trained(config: Config, kind: type, new: Sequence[str]) -> None:
    """Raise ValueError for a head that is new, in a model of this class, of a run that prunes and takes no step."""
    head = config.model.replace_head or any(heads.is_of_head(kind, name) for name in new)
    if head and config.pruners and not config.train.num_steps:
        raise ValueError(
            f"model.path={config.model.path} would get a new head for task.name={config.task.name!r}, and without "
            "steps (train.num_steps=0) it stays random: fine-tune the model first, or fine-tune and prune it in one "
            "run (pat train recipe=encoder)"
        )
