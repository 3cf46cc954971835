"""Models and tokenizers from Hugging Face, and where their structures are.

The names below are imported when they are used: anatomies and budgets need no transformers, which takes seconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pat.models.build import build_config, build_model, check_fits, head_note
    from pat.models.tokenizers import build_tokenizer, byte_tokenizer, tokenizer_digest

__all__ = [
    "build_config",
    "build_model",
    "build_tokenizer",
    "byte_tokenizer",
    "check_fits",
    "head_note",
    "tokenizer_digest",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "tokenizers" if "tokenizer" in name else "build"
    return getattr(importlib.import_module(f"pat.models.{home}"), name)
