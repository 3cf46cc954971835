"""Slices of samples or prompts: each is in one of every dimension, as form=short and domain=law."""

from __future__ import annotations

import re
from collections.abc import Iterable


def places(named: Iterable[tuple[int, Iterable[str]]]) -> dict[str, list[int]]:
    """The positions of each slice: dimensions in the order in which they come, the values of one sorted."""
    found: dict[str, dict[str, list[int]]] = {}
    for position, names in named:
        for name in names:
            found.setdefault(name.partition("=")[0], {}).setdefault(name, []).append(position)
    return {name: own[name] for own in found.values() for name in sorted(own, key=_natural)}


def _natural(name: str) -> list[tuple[int, str]]:
    """2 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
