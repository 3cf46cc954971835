"""Each matrix by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pat.pruning.scopes import Scope


@dataclass(frozen=True)
class Matrix(Scope):
    """Every matrix meets the target."""

    name: str = "matrix"

    apart: ClassVar[bool] = True

    def group(self, matrix: str) -> str:
        """The matrix."""
        return matrix
