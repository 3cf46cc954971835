"""Reads values from files of other commands leniently, and formats numbers for people."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from pat.common.text import file_size, size_in_words

NONE = "-"


def get(content: Any, path: str) -> Any:
    """The value at a dotted path of nested mappings; None where something on the way is missing."""
    for name in path.split("."):
        content = content.get(name) if isinstance(content, Mapping) else None
    return content


def mapping(content: Any, path: str) -> dict[str, Any]:
    """A mapping at a path; empty where there is none."""
    found = get(content, path)
    return dict(found) if isinstance(found, Mapping) else {}


def sequence(content: Any, path: str) -> list[Any]:
    """A list at a path; empty where there is none."""
    found = get(content, path)
    return list(found) if isinstance(found, list | tuple) else []


def text(content: Any, path: str, otherwise: str = "") -> str:
    """A text or number at a path, as text."""
    found = get(content, path)
    return otherwise if found is None or isinstance(found, Mapping | list) else str(found)


def number(content: Any, path: str) -> float | None:
    """A finite number at a path; None for anything else."""
    return finite(get(content, path))


def finite(value: Any) -> float | None:
    """The value if it is a finite number, and not a boolean."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def setting(value: Any) -> str:
    """A setting as a recipe has it, `null`, `true` or `[a, b]`."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("...\n").strip()


def numbers(content: Mapping[str, Any]) -> dict[str, float]:
    """The entries that are finite numbers."""
    return {name: found for name, value in content.items() if (found := finite(value)) is not None}


def flat(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested mappings."""
    if isinstance(content, Mapping) and content:
        for name, item in content.items():
            yield from flat(item, f"{prefix}{name}.")
    else:
        yield prefix[:-1], content


def short(value: float | None) -> str:
    """Four digits; whole numbers with commas."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 1 else f"{value:z.4g}"


def signed(value: float | None) -> str:
    """The same with its sign."""
    return NONE if value is None else f"{value:+z.3g}" if value else "0"


def percent(value: float | None) -> str:
    """`12.5 %` of a share of 1."""
    return NONE if value is None else f"{100 * value:z.3g} %"


def size(value: float | None) -> str:
    """Bytes of files, in decimal units as `1.5 GB`; NONE where they are not known."""
    return NONE if value is None else file_size(value)


def memory(value: float | None) -> str:
    """Bytes of memory, in binary units as `1.5 GiB`; NONE where they are not known."""
    return NONE if value is None else size_in_words(value)


def time_of(seconds: float | None) -> str:
    """Seconds since the epoch as a time in UTC."""
    if seconds is None:
        return NONE
    try:
        return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M} UTC"
    except (OverflowError, OSError, ValueError):
        return NONE


def last(path: str) -> str:
    """The last part of a local folder; a hub name unchanged."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..", "~")]
    return parts[-1] if parts and (path.startswith((".", "/", "~")) or len(parts) > 2) else path


def both(content: Any) -> tuple[str, str]:
    """The names of the two sides of a comparison: the ends of their paths, where these differ."""
    a, b = text(content, "a", "A"), text(content, "b", "B")
    return (last(a), last(b)) if last(a) != last(b) else (a, b)
