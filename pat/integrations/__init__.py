"""The pruner inside other trainers: `attach` for any DeepSpeed engine, `pat.integrations.hf` for HF Trainer."""

from pat.integrations.attach import Pruning, attach

__all__ = ["Pruning", "attach"]
