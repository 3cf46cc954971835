"""A run's checkpoint as a stock Hugging Face folder, proven equal to the effective weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pat.export.loader import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pat.export.loader import load  # when it is used: transformers takes seconds

    return load
