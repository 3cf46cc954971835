"""What a key of the config says of itself: its default as YAML, what it does; and what a section or a method is for."""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic.fields import FieldInfo

from pat.common.annotations import choices
from pat.common.keys import MISSING, default_of

MAPPINGS = ("envelope", "pruners")  # keys whose content the user names


def comment(info: FieldInfo) -> str:
    """What a key does, with the choices where the description does not go through them."""
    said = info.description or ""
    named = [str(value) for value in choices(info.annotation) if value is not None]
    return said if all(re.search(rf"\b{name}\b", said) for name in named) else f"{' | '.join(named)}: {said}"


def extra(info: FieldInfo) -> dict[str, Any]:
    """What a key declares for us only: `pat.common.keys.key`."""
    return info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}


def as_yaml(info: FieldInfo) -> str:
    """A default as YAML on one line."""
    if info.is_required():
        return MISSING
    value = extra(info).get("composed", default_of(info))
    if isinstance(value, str) and not re.fullmatch(r"[\w.-]+|\?\?\?|(runs/)?\$\{.*\}", value):
        return f"'{value}'" if '"' in value else f'"{value}"'
    if isinstance(value, float) and "e" in repr(value):
        mantissa, _, exponent = repr(value).partition("e")
        return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{int(exponent)}"
    return value if isinstance(value, str) else json.dumps(value)


def purpose(cls: type) -> str:
    """What a section or a method is for: the first paragraph of its docstring, on one line."""
    return " ".join((cls.__doc__ or "").strip().split("\n\n")[0].split())
