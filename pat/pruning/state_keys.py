"""How tensors are called in a rank's file of pruner state, and which kinds there are.

PRUNER|keep|PARAMETER|START      packed flags, score and dense alike: the run of a parameter from element START on
PRUNER|gate|KEY                  gates, and what a prior knows of inputs, in the file of rank 0: the same on every rank
"""

from __future__ import annotations

from collections.abc import Iterable

KEEP, SCORE, DENSE = "keep", "score", "dense"
KINDS = (KEEP, SCORE, DENSE)
_GATE = "gate"


def of_mask(pruner: str, kind: str, parameter: str, start: int) -> str:
    """The key of a kind of state of a run of a parameter's elements."""
    return f"{pruner}|{kind}|{parameter}|{start}"


def of_gates(pruner: str, key: str) -> str:
    """The key of a tensor of a pruner that is the same on every rank."""
    return f"{pruner}|{_GATE}|{key}"


def gates_in(keys: Iterable[str], pruner: str) -> dict[str, str]:
    """{the tensor's own name: its key} of what a file holds of a structure pruner, in the keys' order."""
    prefix = of_gates(pruner, "")
    return {key.removeprefix(prefix): key for key in sorted(keys) if key.startswith(prefix)}
