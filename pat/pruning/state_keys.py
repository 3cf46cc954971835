"""The names of the tensors in a rank's file of pruner state, and their kinds.

PRUNER|keep|PARAMETER|START      packed flags, score and dense alike: the run of a parameter from element START on
PRUNER|gate|KEY                  gates and a prior's means of inputs, which every rank has: in rank 0's file
"""

from __future__ import annotations

from collections.abc import Iterable

KEEP, SCORE, DENSE = "keep", "score", "dense"
KINDS = (KEEP, SCORE, DENSE)
_GATE = "gate"


def of_mask(pruner: str, kind: str, parameter: str, start: int) -> str:
    """The key of one kind of state, for a run of a parameter's elements."""
    return f"{pruner}|{kind}|{parameter}|{start}"


def of_gates(pruner: str, key: str) -> str:
    """The key of a tensor of a pruner that is the same on every rank."""
    return f"{pruner}|{_GATE}|{key}"


def gates_in(keys: Iterable[str], pruner: str) -> dict[str, str]:
    """{the tensor's own name: its key} of what a file holds of a structure pruner, in the keys' order."""
    prefix = of_gates(pruner, "")
    return {key.removeprefix(prefix): key for key in sorted(keys) if key.startswith(prefix)}
