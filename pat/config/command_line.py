"""What a user writes on the command line: in Hydra's words before it composes, and what of the recipe goes away for it.

Hydra merges; a user who names another method, or writes a whole mapping, replaces.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, ValueType

from pat.config.errors import OPEN, QUOTES
from pat.config.frozen import flat
from pat.pruning import registry
from pat.pruning.calibration.settings import CalibrationSettings
from pat.schema import FILES

_PLACE = rf"(pruners\.[^.=@]+\.({'|'.join(registry.PACKAGES)}))"
_METHOD = re.compile(rf"{_PLACE}(?:\.name)?=(\w+(?:,\w+)*|'\w+'|\"\w+\")")
_WHOLE = re.compile(rf"{_PLACE}=\{{.*\}}")

_KEEP = r"pruners\.\w+\.budget\.keep"
_NEW = re.compile(rf"\+*({_KEEP}|envelope|data\.sources)[.=]")  # mappings whose keys may be new to a recipe
_REPLACED = re.compile(rf"{_KEEP}|envelope|{'|'.join(map(re.escape, OPEN))}")  # by one that is written whole


def for_hydra(arguments: Sequence[str]) -> list[str]:
    """The arguments as Hydra takes them: a method selects its fields, and what may be new to a recipe is added."""
    return [_added_or_selected(part) for argument in arguments for part in _parts(argument)]


def given_keys(overrides: Sequence[str]) -> dict[str, Any]:
    """The keys of a command line with their values; `optim={lr: 1e-4}` gives `optim` and `optim.lr`."""
    given: dict[str, Any] = {}
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        given[key] = value
        if value.startswith("{"):
            given |= flat(OverridesParser.create().parse_override(override).value(), f"{key}.")
    return given


def drop_merged(content: dict[str, Any], overrides: Sequence[str]) -> None:
    """Hydra merges a mapping into the recipe's, but a user who writes a whole mapping wants nothing else in it, but
    for what later keys add. ValueError for keys of a pruner that an earlier one took away, and for {} where it takes
    nothing away."""
    for place, override in enumerate(overrides):
        later = [each.lstrip("+") for each in overrides[place + 1 :]]
        key, value = override.lstrip("+~").partition("=")[0], _mapping(override)
        if key == "pruners" and (value == {} or override.startswith("~")):
            if lost := next((each for each in later if re.match(r"(\w+@)?pruners\.", each)), None):
                raise ValueError(f"{override} takes all pruners away, so {lost} has none to set: leave one of them out")
            content["pruners"] = {}
        elif value is not None and _REPLACED.fullmatch(key):
            *within, last = key.split(".")
            inner = content
            for name in within:
                inner = inner[name]
            inner[last] = _only(inner[last], [path for each in (override, *later) for path in _paths(key, each)])
        elif value == {} and _at(content, key):
            raise ValueError(f"{override} changes nothing, {key} keeps its values: leave it out, or name keys to set")


def drop_replaced_fields(pruners: dict[str, Any], given: Mapping[str, Any]) -> None:
    """When the command line replaces a method, the recipe's name of it and the settings that only it had go with it."""
    for name, settings in pruners.items():
        for kind in registry.OF_WEIGHTS + registry.OF_STRUCTURES + registry.OF_BOTH:
            place = f"pruners.{name}.{kind}"
            method = settings[kind]
            chosen = given.get(f"{kind}@{place}")
            if method and chosen in registry.names(kind):
                own = _shared(kind, chosen)
                kept = {key: value for key, value in method.items() if key in own or f"{place}.{key}" in given}
                settings[kind] = {**kept, "name": chosen}


def take_data_group(data: dict[str, Any], given: Mapping[str, Any]) -> None:
    """`data=json` counts also where a recipe's body names a source, which Hydra composes after the group. Another
    source than the recipe's is not the one whose subset and revision it names."""
    local = (*FILES, "generated")
    if "data.source" not in given and given.get("data") in (*local, "mixture"):
        data["source"] = given["data"]
    for key in ("subset", "revision") if data["source"] in local and {"data", "data.source"} & set(given) else ():
        if f"data.{key}" not in given:
            data[key] = None


def check_replaced_files(data: Mapping[str, Any], given: Collection[str]) -> None:
    """ValueError where the command line replaces one of a recipe's files, train or eval, and leaves the other."""
    sources = data["sources"] or {}
    for place, part in [("data", data), *((f"data.sources.{name}", {**data, **own}) for name, own in sources.items())]:
        train, held = f"{place}.train", f"{place}.eval"
        if part["source"] not in FILES or part["eval"] is None:
            continue
        if train in given and held not in given:
            raise ValueError(
                f"{train} is replaced, but {held}={part['eval']} is still the recipe's, so the model would be measured "
                f"on other data than yours: give {held}=FILE, too, or {held}=null to hold out a part of {train}"
            )
        if held in given and train not in given:
            raise ValueError(
                f"{held} is replaced, but {train}={part['train']} is still the recipe's: give {train}, too (the same "
                "again, if that is what you mean)"
            )


def _parts(argument: str) -> list[str]:
    """`pruners.P.criterion={name: taylor, decay: 0.9}` is the method and each of its keys."""
    match = _WHOLE.fullmatch(argument)
    value: Any = OverridesParser.create().parse_override(argument).value() if match else None
    if match is None or not isinstance(value, dict) or "name" not in value:  # several mappings are a sweep
        return [argument]
    fields: dict[str, Any] = {match[1]: value["name"]}
    fields |= {f"{match[1]}.{key}": each for key, each in value.items() if key != "name"}
    made = [Override(OverrideType.CHANGE, key, ValueType.ELEMENT, each) for key, each in fields.items()]
    return [f"{each.key_or_group}={each.get_value_element_as_str()}" for each in made]


def _added_or_selected(argument: str) -> str:
    """`pruners.P.criterion.name=taylor` selects the method and its fields: `criterion@pruners.P.criterion=taylor`.

    `pruners.P.budget.keep.heads=4` may be new to a recipe that keeps something else, and so may be a limit, a source,
    and what is in a mapping that is written whole."""
    match = _METHOD.fullmatch(argument)
    if match is None:
        whole = argument.lstrip("+").startswith(tuple(f"{key}={{" for key in OPEN))
        return f"++{argument.lstrip('+')}" if whole or _NEW.match(argument) else argument
    return f"{match[2]}@{match[1]}={match[3].strip(QUOTES)}"


def _at(content: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key; None where there is none."""
    found: Any = content
    for name in key.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _mapping(override: str) -> dict[Any, Any] | None:
    """The value, where it is a mapping."""
    if "={" not in override:
        return None
    value: Any = OverridesParser.create().parse_override(override).value()
    return value if isinstance(value, dict) else None


def _paths(place: str, override: str) -> Iterator[list[str]]:
    """What a command line's argument sets in the mapping at a place: ["loss", "ratio"] of envelope.loss.ratio=1.1 and
    of envelope={loss: {ratio: 1.1}}."""
    key = override.lstrip("+").partition("=")[0]
    if f"{key}.".startswith(f"{place}."):
        within = key.removeprefix(place).split(".")[1:]
        yield from ([*within, *path] for path in _leaves(_mapping(override)) if within or path)


def _leaves(value: Mapping[Any, Any] | None) -> Iterator[list[str]]:
    """The keys on the way to each value of nested mappings."""
    for key, inner in (value or {}).items():
        yield from ([str(key), *path] for path in _leaves(inner if isinstance(inner, dict) else None))
    if not value:
        yield []


def _only(content: Mapping[str, Any], paths: Sequence[Sequence[str]]) -> dict[str, Any]:
    """What of nested mappings lies at these paths."""
    within: dict[str, list[Sequence[str]]] = {}
    for first, *rest in paths:
        if first in content:
            within.setdefault(first, []).append(rest)
    return {
        first: content[first] if [] in rests or not isinstance(content[first], dict) else _only(content[first], rests)
        for first, rests in within.items()
    }


def _shared(kind: str, name: str) -> set[str]:
    """The settings of a method that may stay what a recipe made them for another one; a method that is calibrated only
    if told so has numbers of its own."""
    own = registry.defaults(kind, name)
    if issubclass(registry.classes(kind)[name], CalibrationSettings):
        return set(own)
    return set(own) - {field.name for field in dataclasses.fields(CalibrationSettings)}
