"""How the JSON of `pat evaluate` is told from that of other commands, which also have `models` with figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEYS = ("metrics", "figures", "results")  # of a model: on data, on data or a mix, of lm-evaluation-harness


def is_evaluation(content: Any) -> bool:
    """Whether `pat evaluate --json` wrote it."""
    models = content.get("models") if isinstance(content, Mapping) else None
    return isinstance(models, list) and any(
        isinstance(one, Mapping) and any(isinstance(one.get(key), Mapping | list) for key in KEYS) for one in models
    )
