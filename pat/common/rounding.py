"""From a share to whole units or steps: the one rounding, in exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction


def exact(share: float) -> Fraction:
    """The decimal that a float prints as: 0.29 is 29/100, and not the binary fraction just below it."""
    return Fraction(repr(float(share)))


def part_of(n: int, share: float) -> int:
    """floor(share * n + 1/2), exactly: 0.15 of 30 is 4.5, which rounds up to 5."""
    return math.floor(exact(share) * n + Fraction(1, 2))
