"""Pydantic's errors as one sentence: what was given, and what is allowed there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from pat.common.annotations import choices, options, words
from pat.common.text import did_you_mean

# Where the key, and what is above it, go in a sentence: a model around this one makes them longer.
_KEY, _PLACE = "\0", "\1"


def invalid(error: ValidationError, model: type[BaseModel] | None = None, within: str | None = None) -> str:
    """The first of pydantic's errors; `model`: what was validated, unless `located` has seen it."""
    details = error.errors() if model is None else located(error, model).errors()
    place = ".".join(map(str, (*([within] if within else []), *details[0]["loc"])))
    above = place.rpartition(".")[0]
    sentence = str(details[0].get("ctx", {}).get("sentence", details[0]["msg"]))
    return sentence.replace(_KEY, place).replace(_PLACE, f" in {above}" if above else " at the top")


def located(error: ValidationError, model: type[BaseModel]) -> ValidationError:
    """The same errors in our words, to be raised within another model, which completes the place."""
    errors = sorted(error.errors(), key=lambda item: item["type"] == "missing")  # a misspelt key is why another lacks
    return ValidationError.from_exception_data(error.title, [_detail(item, model) for item in errors])


def _detail(item: Any, model: type[BaseModel]) -> InitErrorDetails:
    """One error, at the key, without the branches of a union that pydantic has tried."""
    place: tuple[int | str, ...] = item["loc"]
    if "sentence" in item.get("ctx", {}):
        sentence = item["ctx"]["sentence"]
    else:
        annotation, place = _annotation(model, place)
        sentence = _sentence(item, annotation, place)
    return InitErrorDetails(
        type=PydanticCustomError("pat", "{sentence}", {"sentence": sentence}), loc=place, input=item["input"]
    )


def _annotation(model: type[BaseModel], place: Sequence[int | str]) -> tuple[Any, tuple[int | str, ...]]:
    """(the type at a place, the place as far as the schema has it); of an unknown key the section's type."""
    annotation: Any = model
    for depth, part in enumerate(place):
        inner = [option for option in options(annotation) if option is not type(None)]
        if len(inner) > 1:
            return annotation, tuple(place[:depth])
        kind = inner[0]
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if part not in kind.model_fields:
                return kind, tuple(place[: depth + 1])
            annotation = kind.model_fields[str(part)].annotation
        else:
            annotation = get_args(kind)[-1] if get_origin(kind) in (list, dict) else Any
    return annotation, tuple(place)


def _sentence(item: Any, annotation: Any, place: tuple[int | str, ...]) -> str:
    """What is wrong, with _KEY for the key, which a model around this one makes longer."""
    value, rule = item["input"], item.get("ctx", {})
    if item["type"] == "extra_forbidden":
        known = sorted(annotation.model_fields)
        return f"there is no key '{_KEY}'; allowed{_PLACE}: {', '.join(known)}{did_you_mean(str(place[-1]), known)}"
    if item["type"] == "missing":
        return f"no value for {_KEY}"
    if item["type"] == "value_error":
        said = str(rule["error"])
        return f"{_KEY} {said}" if said.startswith("is ") else f"{_KEY}: {said}"
    if allowed := choices(annotation):
        return f"{_KEY} is {value!r}; allowed: {', '.join('null' if one is None else str(one) for one in allowed)}"
    for name, word in (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below")):
        if name in rule:
            bound = rule[name]
            return f"{_KEY} is {value}, but must be {word} {int(bound) if bound == int(bound) else bound}"
    if item["type"] == "string_too_short":
        return f"{_KEY} is empty: leave it out, or give a name"
    if item["type"] in ("too_short", "too_long"):
        least, most = rule.get("min_length"), rule.get("max_length")
        return f"{_KEY} is {value!r}, but must have {f'at most {most}' if least is None else f'at least {least}'} items"
    return f"{_KEY} is {value!r}, but must be {words(annotation)}"
