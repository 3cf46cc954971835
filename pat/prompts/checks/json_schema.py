"""The output is JSON of a schema."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from pydantic import field_validator
from referencing import Registry
from referencing.exceptions import Unresolvable

from pat.common.keys import key
from pat.prompts.checks import Check, shown

DEEP = 30  # levels of an output, beyond which it and not the schema is blamed
_FENCED = re.compile(r"\A```(?:json)?\s*\n(.*?)\n?```\Z", re.DOTALL)


class JsonSchema(Check, frozen=True):
    """The whole output is JSON that the schema (draft 2020-12) accepts; a Markdown fence around it does not count.

    References lead to places in the schema itself: none is fetched.
    """

    name: Literal["json_schema"] = "json_schema"
    schema_: dict[str, Any] = key(..., "the JSON schema", alias="schema")

    @field_validator("schema_")
    @classmethod
    def _is_one(cls, schema: dict[str, Any]) -> dict[str, Any]:
        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            raise ValueError(f"it is not a JSON schema: {error.message}") from None
        return schema

    def failure(self, output: str, prompt: Mapping[str, Any]) -> str | None:
        """Why it is not JSON, or where the schema rejects it."""
        text = output.strip()
        fenced = _FENCED.match(text)
        try:
            value = json.loads(fenced[1] if fenced else text, parse_constant=_refuse)
        except (ValueError, RecursionError):  # a model may open a thousand brackets
            return f"{shown(output)} is no JSON"
        try:
            error = best_match(Draft202012Validator(self.schema_, registry=Registry()).iter_errors(value))
        except Unresolvable as missing:
            raise ValueError(f"the schema refers to {missing.ref}, which is not in it: put it under $defs") from None
        except RecursionError:
            if isinstance(value, dict | list) and _depth(value) > DEEP:
                return f"{shown(output)} is nested too deeply"
            raise ValueError("the schema refers to itself without end") from None
        except OverflowError:
            return f"{shown(output)} has a number that is out of range"
        return None if error is None else f"{error.json_path}: {shown(error.message)}"


def _depth(value: Any) -> int:
    """How many lists and mappings are within each other."""
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return depth


def _refuse(constant: str) -> None:
    """NaN and Infinity, which Python reads and JSON does not have."""
    raise ValueError(f"{constant} is no JSON")
