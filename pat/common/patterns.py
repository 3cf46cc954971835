"""Lists of name patterns: each must match something or be marked optional, so that typing errors are found.

*.mlp.*             shell style; must match
optional:*.router   may match nothing, as in a recipe for several models
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

OPTIONAL = "optional:"
SHOWN = 12  # names in an error

Fits = Callable[[str, str], bool]  # (name, pattern without its prefix)


def plain(pattern: str) -> str:
    """The pattern without its prefix."""
    return pattern.removeprefix(OPTIONAL)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether any of the patterns matches."""
    return any(fnmatchcase(name, plain(pattern)) for pattern in patterns)


def ends(name: str, end: str) -> bool:
    """Whether a dotted name ends with these components, for lists that name the ends of modules."""
    return name == end or name.endswith(f".{end}")


def check(
    key: str,  # of the config, for the error
    patterns: Iterable[str],
    names: Sequence[str],  # what they may match
    what: str = "parameter",  # a word for one of them
    fits: Fits = fnmatchcase,
) -> None:
    """Raises ValueError for the first pattern that matches nothing and is not `optional:`, with the likely intended
    name."""
    for pattern in patterns:
        if not pattern.startswith(OPTIONAL) and not any(fits(name, pattern) for name in names):
            meant = " or ".join(map(repr, _close(pattern, names, fits)))
            raise ValueError(
                f"{key} has {pattern!r}, which matches no {what} of the model"
                + (f": did you mean {meant}?" if meant else f"; it has {in_patterns(names)}.")
                + f" Where it may match nothing, write '{OPTIONAL}{pattern}'"
            )


def in_patterns(names: Sequence[str]) -> str:
    """The names, those of all layers as one; the first few."""
    patterns = _of_all_layers(names)
    return ", ".join(patterns[:SHOWN]) + (", ..." if len(patterns) > SHOWN else "")


def _of_all_layers(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in names))


def _close(pattern: str, names: Sequence[str], fits: Fits) -> list[str]:
    """Patterns that do match and hardly differ; else the names that look most like it."""
    fixed = next((better for better in _repaired(pattern, names) if any(fits(name, better) for name in names)), None)
    return [fixed] if fixed else get_close_matches(pattern, _of_all_layers(names), 3, 0.5)


def _repaired(pattern: str, names: Sequence[str]) -> Iterator[str]:
    """The pattern with each unknown component replaced by the closest known one, and made more general."""
    there = list(dict.fromkeys(part for name in names for part in name.split(".")))
    known = ".".join(_known(part, there) for part in pattern.split("."))
    yield from (known, f"*.{known}", f"{known}.*", f"*.{known}.*")
    if middle := known.strip("*."):
        yield f"*{middle}*"


def _known(part: str, there: Sequence[str]) -> str:
    if any(fnmatchcase(name, part) for name in there):
        return part
    return next(iter(get_close_matches(part, there, 1, 0.6)), part)
