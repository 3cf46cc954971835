"""Criteria, granularities, schedules, budgets and structures, found by name.

A method is a frozen dataclass with a field `name: str = "movement"` (its key) in a file of its kind's package. The
file is found by scanning the package: nothing else has to be edited.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from pat import scan

PACKAGES = {
    "criterion": "pat.pruning.criteria",
    "granularity": "pat.pruning.granularity",
    "schedule": "pat.pruning.schedules",
    "budget": "pat.pruning.budgets",
    "structure": "pat.pruning.structures",
    "gate": "pat.pruning.gates",
}
OF_WEIGHTS = ("granularity", "criterion")  # the methods of a pruner of weights,
OF_STRUCTURES = ("gate",)  # of one of structures (whose `structures` are a list of names),
OF_BOTH = ("budget", "schedule")


@cache
def classes(kind: str) -> Mapping[str, type]:
    """Every method of a kind, by name, sorted."""
    return scan.named_classes(PACKAGES[kind], f"{kind} classes")


def names(kind: str) -> list[str]:
    """The names of a kind, sorted."""
    return list(classes(kind))


def defaults(kind: str, name: str) -> dict[str, Any]:
    """Fields of a method with their defaults; "???" (OmegaConf's missing value) where the user must choose."""
    return {f.name: "???" if _required(f) else _default(f) for f in fields(_find(kind, name))}


def build(kind: str, mapping: Mapping[str, Any] | str) -> Any:
    """The method that `{"name": ..., **fields}`, or a plain name, describes. ValueError for what does not exist."""
    given = {"name": mapping} if isinstance(mapping, str) else dict(mapping)
    if "name" not in given:
        raise ValueError(f"A {kind} needs a name; allowed: {', '.join(names(kind))}.")
    cls = _find(kind, given["name"])
    allowed = {f.name: f for f in fields(cls)}
    label = f"{kind} {given['name']}"
    unknown = [key for key in given if key not in allowed]
    if unknown:
        own = ", ".join(key for key in allowed if key != "name") or "none"
        raise ValueError(f"{label} has no field {', '.join(map(repr, unknown))}; allowed: {own}.")
    absent = [key for key, f in allowed.items() if _required(f) and given.get(key, "???") == "???"]
    if absent:
        raise ValueError(f"{label} needs {', '.join(absent)}: give {'it' if len(absent) == 1 else 'them'} a value.")
    hints = get_type_hints(cls)
    for key, value in given.items():
        if not _fits(value, hints[key]):
            raise ValueError(f"{label}: {key} is {value!r}, but must be {_words(hints[key])}.")
    return cls(**given)


def _find(kind: str, name: Any) -> type:
    """The class of that name."""
    if name not in names(kind):
        raise ValueError(f"There is no {kind} called {name!r}; allowed: {', '.join(names(kind))}.")
    return classes(kind)[name]


def _required(f: Field[Any]) -> bool:
    """Whether a field has no default."""
    return f.default is MISSING and f.default_factory is MISSING


def _default(f: Field[Any]) -> Any:
    """The default of a field that has one."""
    return f.default if f.default_factory is MISSING else f.default_factory()


def _options(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the one type."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value has the annotated type; an int is a float, a bool is neither; containers pass."""
    options = _options(hint)
    if not all(isinstance(option, type) for option in options):
        return True
    if isinstance(value, bool):
        return bool in options
    return isinstance(value, options) or (float in options and isinstance(value, int))


def _words(hint: Any) -> str:
    """An annotation in words."""
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    return " or ".join(words.get(option, str(option)) for option in _options(hint))
