"""All matrices of a pruner."""

from __future__ import annotations

from dataclasses import dataclass

from pat.pruning.scopes import Scope


@dataclass(frozen=True)
class Global(Scope):
    """One ranking and one target for all: a matrix may lose more than another."""

    name: str = "global"

    def group(self, matrix: str) -> str:
        """The same for all."""
        return "all parameters"
