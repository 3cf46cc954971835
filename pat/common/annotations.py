"""What an annotation allows: its members, its choices, and how to say it in words."""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list [a, b]",
    dict: "a mapping {key: value}",
    type(None): "null",
    Any: "anything",
}


def plain(annotation: Any) -> Any:
    """An annotation without its metadata, also within lists."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is list:
        return list[plain(get_args(annotation)[0])]  # type: ignore[misc]
    return annotation


def options(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the one type."""
    annotation = plain(annotation)
    union = get_origin(annotation) in (Union, types.UnionType)
    return tuple(plain(option) for option in get_args(annotation)) if union else (annotation,)


def choices(annotation: Any) -> list[Any]:
    """The values that a Literal allows, in order of their names, None last; [] for any other type.

    Not in the order of the Literal: Python may return an equal union that some other package wrote in another order.
    """
    allowed = options(annotation)
    literals = [value for option in allowed if get_origin(option) is Literal for value in get_args(option)]
    others = [option for option in allowed if get_origin(option) is not Literal and option is not type(None)]
    return [] if others or not literals else sorted(literals, key=str) + [None] * (type(None) in allowed)


def words(annotation: Any) -> str:
    """An annotation in words."""
    named = []
    for option in options(annotation):
        if get_origin(option) is Literal:
            named += sorted(str(value) for value in get_args(option))
        else:
            section = "a mapping {key: value}" if hasattr(option, "model_fields") else str(option)
            named.append(_WORDS.get(get_origin(option) or option, section))
    return " or ".join(named)
