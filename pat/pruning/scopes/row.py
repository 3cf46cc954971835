"""Each output of a matrix by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pat.pruning.scopes import Scope


@dataclass(frozen=True)
class Row(Scope):
    """Every row of a matrix (out, in) meets the target, as Wanda ranks (Sun et al. 2023, arXiv:2306.11695)."""

    name: str = "row"

    apart: ClassVar[bool] = True
    of_rows: ClassVar[bool] = True

    def group(self, matrix: str) -> str:
        """The matrix, whose rows are assembled for the ranking."""
        return matrix
