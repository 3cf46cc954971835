"""Hydra's, OmegaConf's and pydantic's errors in one sentence: what was given, what is allowed there."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any, get_args, get_origin

import yaml
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from pat.keys import Section, choices, options, words

# Where the key, and what is above it, go in a sentence: a model around this one makes them longer.
_KEY, _PLACE = "\0", "\1"


def explain(error: Exception) -> str:
    """One sentence: what was given, what is allowed there."""
    cause = error.__cause__ or error.__context__ or error
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        at = error.problem_mark
        return f"{at.name} is not readable as YAML: {error.problem} (line {at.line + 1}, column {at.column + 1})"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        options = ", ".join(error.options or []) or "none"
        hint = " (or --config-dir DIR with DIR/recipe/NAME.yaml)" if group == "recipe" else ""
        return f"there is no {group or 'config'} called {option!r}; allowed: {options}{hint}" + did_you_mean(
            option, error.options or []
        )
    if isinstance(error, OverrideParseException):
        return (
            f"cannot read {error.override!r}: write key=value, with quotes around what the shell or Hydra would split"
        )
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        file = re.match(r"In '([^']+)'", str(error))
        return (f"in {file[1]}.yaml: " if file else "") + _explain_key(cause)
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    group = re.search(
        r"Could not override '([^']+)'.*(No match in the defaults list|Did you mean to override (\S+)\?)", text
    )
    if group:
        name, _, place = group[1].partition("@")
        selected = f"nothing selects {name}{' for ' + place if place else ''}"
        if group[3]:
            return f"{selected}; did you mean {group[3]}=...?"
        return f"{selected} yet: a recipe's defaults list must say `- /{group[1]}: OPTION` first"
    ambiguous = re.match(r"Ambiguous value for argument '([^=]+)=(.*?)' 1\.|Sweep parameters '([^=]+)=(.*?)'", text)
    if ambiguous:
        key, value = ambiguous[1] or ambiguous[3], ambiguous[2] or ambiguous[4]
        return f"{key}={value} is several values: add -m for one run each, or write {key}=[{value}] for a list"
    return re.sub(r"\s*(Set the environment|To append to your config).*", "", text) or type(error).__name__


def _explain_key(error: OmegaConfBaseException) -> str:
    key, message = str(error.full_key), (error.msg or str(error)).splitlines()[0]
    node = error.parent_node
    if isinstance(node, DictConfig) and ("not in" in message or "not a member" in message):
        allowed = sorted(str(key) for key in node if key != "hydra")
        last = key.rpartition(".")[2]
        place = key.rpartition(".")[0]
        return (
            f"there is no key {key!r}; allowed {'in ' + place if place else 'at the top'}: {', '.join(allowed)}"
            + did_you_mean(last, allowed)
        )
    words = {"Integer": "a whole number", "Float": "a number", "bool": "true or false"}
    wrong = re.match(r"Value '(.*?)' .*?(?:could not be converted to|is not a valid) (\w+)", message)
    if wrong and wrong[2] in words:
        return f"{key} is {wrong[1]!r}, but must be {words[wrong[2]]}"
    shape = re.match(r"Invalid value assigned: (\w+) is not a (ListConfig)|Cannot assign (\w+) to (Dict)", message)
    if shape:
        given = shape[1] or shape[3]
        return f"{key} must be a {'list, [a, b]' if shape[2] else 'mapping, {key: value}'}, but is of type {given}"
    of_pruner = re.match(r"Invalid type assigned: (\w+) is not a subclass of PrunerConfig. value: (.*)", message)
    if of_pruner:
        from pat.schema import PrunerConfig

        keys = ", ".join(sorted(PrunerConfig.model_fields))
        return f"{of_pruner[2]} is no pruner: pruners.NAME is a mapping with keys out of {keys}"
    return f"{key} must have a value" if "not Optional" in message else f"{key}: {message}"


def invalid(error: ValidationError, model: type[Section] | None = None, within: str | None = None) -> str:
    """The first of pydantic's errors; `model`: what was validated, unless `located` has seen it."""
    details = error.errors() if model is None else located(error, model).errors()
    place = ".".join(map(str, (*([within] if within else []), *details[0]["loc"])))
    above = place.rpartition(".")[0]
    sentence = str(details[0].get("ctx", {}).get("sentence", details[0]["msg"]))
    return sentence.replace(_KEY, place).replace(_PLACE, f" in {above}" if above else " at the top")


def located(error: ValidationError, model: type[Section]) -> ValidationError:
    """The same errors with sentences of ours, to be raised within another model: the place is filled in at last."""
    return ValidationError.from_exception_data(error.title, [_detail(item, model) for item in error.errors()])


def _detail(item: Any, model: type[Section]) -> InitErrorDetails:
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


def _annotation(model: type[Section], place: Sequence[int | str]) -> tuple[Any, tuple[int | str, ...]]:
    """(the type at a place, the place as far as the schema has it); of an unknown key the section's type."""
    annotation: Any = model
    for depth, part in enumerate(place):
        inner = [option for option in options(annotation) if option is not type(None)]
        if len(inner) > 1:
            return annotation, tuple(place[:depth])
        kind = inner[0]
        if isinstance(kind, type) and issubclass(kind, Section):
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


def did_you_mean(given: str, allowed: Sequence[str]) -> str:
    """`; did you mean NAME?`, or nothing where no name is close."""
    close = difflib.get_close_matches(given, allowed, 1)
    return f"; did you mean {close[0]}?" if close else ""
