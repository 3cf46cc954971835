"""Keys that have no effect beside another: an error, unless they keep their default.

A key declares it where it stands (`only_with` of `pat.common.keys.key`): all conditions, separated by commas, must
hold.

    engine.dtype=bf16|fp16    one of these values       .source!=json|csv    none of them; of the same section
    distill.teacher           set: not null, 0 or empty
    .teacher or .cache        one of these conditions
    task                      a task that takes the key
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

from pat.common.keys import Section, default_of

OR = " or "  # binds more tightly than a comma


def problems(
    config: Section,
    taking: Callable[[str], Collection[str]],  # key -> the names of the tasks that take it
    given: Collection[str] = (),  # the keys of the command line
) -> Iterator[str]:
    """A sentence for each key of a whole config that something else makes void."""
    yield from _of_section(config, config, "", given, taking)


def of_section(section: Section, place: str) -> Iterator[str]:
    """The same of one section by itself: conditions on other sections are not looked at."""
    yield from _of_section(section, None, f"{place}.", (), lambda _: ())


def holds(condition: str, section: Any, whole: Any) -> bool:
    """Whether a condition holds; it does where it names a key that does not exist."""
    if OR in condition:
        return any(holds(one, section, whole) for one in condition.split(OR))
    name, unless, allowed = _read(condition)
    value: Any = section if name.startswith(".") else whole
    for part in name.removeprefix(".").split("."):
        if not hasattr(value, part):
            return True
        value = getattr(value, part)
    if allowed is None:
        return value not in (None, False, 0, "") and value != [] and value != {}
    return (("null" if value is None else str(value)) in allowed) != unless


def _read(condition: str) -> tuple[str, bool, list[str] | None]:
    """(the key, whether the values are those that do not fit, the values or None for anything that is set)."""
    match = re.fullmatch(r"([\w.]+)(?:(!?)=(.*))?", condition.strip())
    assert match, condition
    return match[1], match[2] == "!", match[3].split("|") if match[3] is not None else None


def shown(condition: str) -> str:
    """A condition without the points that stand for the same section."""
    return OR.join(one.removeprefix(".") for one in condition.split(OR))


def resolved(only_with: str, place: str, taking: Callable[[str], Collection[str]]) -> list[str]:
    """The conditions of the key at a place, each by itself, with `task` as the names of tasks."""
    conditions = [condition.strip() for condition in only_with.split(",")]
    return [f"task.name={'|'.join(taking(place))}" if one == "task" else one for one in conditions]


def _of_section(
    section: Section, whole: Any, place: str, given: Collection[str], taking: Callable[[str], Collection[str]]
) -> Iterator[str]:
    for name, info in type(section).model_fields.items():
        value, extra = getattr(section, name), info.json_schema_extra
        if isinstance(extra, dict) and "only_with" in extra and value != default_of(info):
            excused = extra.get("inherited") and f"{place}{name}" not in given
            conditions = () if excused else resolved(str(extra["only_with"]), f"{place}{name}", taking)
            for condition in conditions:
                if not holds(condition, section, whole):
                    yield f"{place}{name} {_given(value)}, but {_why(condition, section, whole, place)}"
        if isinstance(value, Section):
            yield from _of_section(value, whole, f"{place}{name}.", given, taking)
        elif isinstance(value, dict):
            for key, item in value.items():
                if isinstance(item, Section):
                    yield from _of_section(item, whole, f"{place}{name}.{key}.", given, taking)


def _given(value: Any) -> str:
    return "is set" if isinstance(value, Section) else f"is {value!r}"


def _why(condition: str, section: Any, whole: Any, place: str) -> str:
    """What makes the key void, and what to do."""
    if OR in condition:
        keys = OR.join(_full(one, place) for one in condition.split(OR))
        return f"without {keys} it would be ignored: set one of them, or leave it out"
    name, unless, allowed = _read(condition)
    value: Any = section if name.startswith(".") else whole
    for part in name.removeprefix(".").split("."):
        value = getattr(value, part)
    key = _full(name, place)
    if allowed is None:
        return f"without {key} it would be ignored: set {key}, or leave it out"
    said = "null" if value is None else value
    what = "leave it out" if unless else f"leave it out, or take {key}={' or '.join(allowed)}"
    return f"with {key}={said} it would be ignored: {what}"


def _full(name: str, place: str) -> str:
    """A condition's key by its whole name."""
    return f"{place}{name[1:]}" if name.startswith(".") else name
