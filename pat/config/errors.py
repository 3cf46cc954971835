"""Hydra's and OmegaConf's errors in one sentence: what was given, what is allowed there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pat.common.text import did_you_mean
from pat.config.places import options
from pat.config.quoting import typed


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
        key, equals, value = (error.override or "").partition("=")
        return (
            f"cannot read {error.override!r}: write key=value, with quotes around what the shell or Hydra would split"
            + (f", such as {typed(key, value.strip(QUOTES))}" if equals else "")
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
        new = f"; {_adds()}" if place.startswith("pruners.") else ""
        if group[3]:
            return f"{selected}{new}; did you mean {group[3]}=...?"
        return f"{selected} yet: a recipe's defaults list must say `- /{group[1]}: OPTION` first{new}"
    ambiguous = re.match(r"Ambiguous value for argument '([^=]+)=(.*?)' 1\.|Sweep parameters '([^=]+)=(.*?)'", text)
    if ambiguous:
        key, value = ambiguous[1] or ambiguous[3], ambiguous[2] or ambiguous[4]
        key = key.removeprefix("++")  # which mappings get that were given without it
        sweep = "pat sweep compares a run of each (pat train -m starts them)"
        return f"{key}={value} is several values: {sweep}, or write {key}=[{value}] for a list"
    return re.sub(r"\s*(Set the environment|To append to your config).*", "", text) or type(error).__name__


QUOTES = "\"'"

OF_GENERAL_RECIPES = "recipes encoder and decoder have `weights`, encoder_narrow and decoder_narrow `narrow`"

OPEN = ("model.config", "engine.deepspeed", "task.template_options", "data.sources")  # mappings with keys of others


def _adds(name: str = "NAME") -> str:
    """How a command line adds a pruner."""
    return f"+pruner@pruners.{name}={'|'.join(options('pruner'))} adds a pruner, whose keys then follow"


def _places(node: DictConfig, name: str) -> list[str]:
    """The keys of a whole config that end in this name."""

    def below(content: dict[str, Any], place: str) -> Iterator[str]:
        for key, value in content.items():
            if key == name:
                yield place + key
            if isinstance(value, dict):
                yield from below(value, f"{place}{key}.")

    content: Any = OmegaConf.to_container(node, resolve=False)
    return list(below({key: value for key, value in content.items() if key != "hydra"}, ""))


def _explain_key(error: OmegaConfBaseException) -> str:
    key, message = str(error.full_key), (error.msg or str(error)).splitlines()[0]
    node = error.parent_node
    if isinstance(node, DictConfig) and ("not in" in message or "not a member" in message):
        allowed = sorted(str(key) for key in node if key != "hydra")
        last = key.rpartition(".")[2]
        place = key.rpartition(".")[0]
        if f"{place}.".startswith(tuple(f"{each}." for each in OPEN)):
            return f"{place} does not have {last!r} yet: add it with a plus, +{key}=..."
        if place == "pruners":
            hint = f"; {OF_GENERAL_RECIPES}; {_adds(last)}"
        elif last == "sparsity" and "keep" in node and isinstance(node["keep"], DictConfig):
            structure = next(iter(node["keep"]), "ffn")
            units = {"ffn": "neurons"}.get(structure, structure)
            hint = f"; to keep half of the {units}: {place}.keep.{structure}=0.5"
        elif not place and 1 <= len(deeper := _places(node, last)) <= 3:
            hint = f"; did you mean {' or '.join(deeper)}?"
        else:
            hint = did_you_mean(last, allowed)
        where = "in " + place if place else "at the top"
        return f"there is no key {key!r}; allowed {where}: {', '.join(allowed)}{hint}"
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

        keys, name = ", ".join(sorted(PrunerConfig.model_fields)), key.rpartition(".")[2]
        if of_pruner[2] == "{}":
            return f"the recipe has no pruner called {key!r}: {OF_GENERAL_RECIPES}; {_adds(name)}"
        if of_pruner[2].startswith("{"):
            return f"pruners.{name} is new and cannot be given whole: {_adds(name)} (pruners.{name}.KEY=..., of {keys})"
        return f"{of_pruner[2]} is not a pruner: pruners.NAME is a mapping with keys out of {keys}; {_adds()}"
    return f"{key} must have a value" if "not Optional" in message else f"{key}: {message}"
