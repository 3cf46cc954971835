"""What a sparsity counts, and how many units it removes. One file a budget."""

from __future__ import annotations

import math
from fractions import Fraction


def num_pruned(num_units: int, sparsity: float) -> int:
    """Units that `sparsity` removes: floor(sparsity * num_units + 1/2), in exact arithmetic.

    The float counts as the decimal it prints as, so 0.15 of 30 is 4.5, which rounds up to 5.
    """
    return math.floor(Fraction(repr(float(sparsity))) * num_units + Fraction(1, 2))
