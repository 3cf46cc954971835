"""Which value comes next: the most first, then the least, then halves between the best inside and the first outside.

Assumes that no metric is worse where less is pruned. Near the limit the noise of training decides.
"""

from __future__ import annotations

from collections.abc import Mapping


def upcoming(
    number: int,  # of values, from the least pruned to the most
    inside: Mapping[int, bool],  # of those that are known
) -> int | None:
    """The index of the value to try; None: the answer is known."""
    most = number - 1
    if most not in inside:
        return most
    if inside[most]:
        return None
    if 0 not in inside:
        return 0
    low, high = best(inside), min(index for index, is_inside in inside.items() if not is_inside)
    return (low + high) // 2 if low is not None and high - low > 1 else None


def best(inside: Mapping[int, bool]) -> int | None:
    """The most that is inside; None: nothing is."""
    return max((index for index, is_inside in inside.items() if is_inside), default=None)


def most_runs(number: int) -> int:
    """How many runs it takes at most: both ends, and log2 of the steps between them, rounded up."""
    return min(number, 2 + max(number - 2, 0).bit_length())
