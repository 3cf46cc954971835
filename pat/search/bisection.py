"""Which values come next: the most first, then the least, then halves between the best inside and the first outside.

With several runs at once a round begins with both ends, and then cuts what is left into equal parts: k runs leave one
part of k + 1. Assumes that no metric is worse where less is pruned. Near the limit the noise of training decides.
"""

from __future__ import annotations

from collections.abc import Mapping


def upcoming(
    number: int,  # of values, from the least pruned to the most
    inside: Mapping[int, bool],  # of those that are known
    at_once: int = 1,  # runs
) -> list[int]:
    """The indices of the values to try now, at most `at_once`; []: the answer is known."""
    most = number - 1
    if inside.get(most):
        return []
    chosen = [end for end in dict.fromkeys((most, 0)) if end not in inside][:at_once]
    low = best(inside)
    if low is None and 0 in inside:
        return chosen  # not even the least
    low = low or 0
    high = outside(inside) or most
    parts = at_once - len(chosen) + 1
    between = (low + (high - low) * part // parts for part in range(1, parts))
    return chosen + [index for index in dict.fromkeys(between) if low < index < high]


def best(inside: Mapping[int, bool]) -> int | None:
    """The most that is inside; None: nothing is."""
    return max((index for index, is_inside in inside.items() if is_inside), default=None)


def outside(inside: Mapping[int, bool]) -> int | None:
    """The least that is outside, above the best that is inside; None: nothing is."""
    low = best(inside)
    return min((i for i, is_inside in inside.items() if not is_inside and (low is None or i > low)), default=None)


def at_most(number: int, at_once: int = 1) -> tuple[int, int]:
    """(runs, rounds) that it takes where the last value inside is the worst to find."""
    runs, rounds = 0, 0
    for last in range(-1, number):
        known: dict[int, bool] = {}
        made = 0
        while batch := upcoming(number, known, at_once):
            known |= {index: index <= last for index in batch}
            made += 1
        runs, rounds = max(runs, len(known)), max(rounds, made)
    return runs, rounds
