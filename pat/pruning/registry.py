"""Criteria, granularities, schedules, budgets and structures, found by name.

A method is a frozen dataclass with a field `name: str = "movement"` (its key) in a file of its kind's package. The
file is found by scanning the package (`pat.common.scan`). Importing this file lets the schema read pruners' settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from dataclasses import Field as DataclassField
from functools import cache
from typing import Any, Literal, cast, get_type_hints

from pydantic import Field, ValidationError, create_model

from pat.common import errors, scan
from pat.common.keys import Section, read_methods_by

PACKAGES = {
    "criterion": "pat.pruning.criteria",
    "granularity": "pat.pruning.granularity",
    "schedule": "pat.pruning.schedules",
    "budget": "pat.pruning.budgets",
    "structure": "pat.pruning.structures.kinds",
    "gate": "pat.pruning.gates",
}
OF_WEIGHTS = ("granularity", "criterion")  # the methods of a weight pruner,
OF_STRUCTURES = ("gate",)  # of one of structures (whose `structures` are a list of names),
OF_BOTH = ("budget", "schedule")


@cache
def classes(kind: str) -> Mapping[str, type]:
    """Every method of a kind, by name, sorted."""
    return scan.named_classes(PACKAGES[kind], f"{kind} classes")


def names(kind: str) -> list[str]:
    """The names of a kind, sorted."""
    return list(classes(kind))


def defaults(kind: str, name: str) -> dict[str, Any]:
    """Fields of a method with their defaults; "???" (OmegaConf's missing value) where the user must choose."""
    return {f.name: "???" if _required(f) else _default(f) for f in fields(_find(kind, name))}


def build(kind: str, value: Any) -> Any:
    """The method that `{"name": ..., **fields}`, or a plain name, describes. ValueError for what does not exist."""
    try:
        return parse(kind, value)
    except ValidationError as error:
        raise ValueError(errors.invalid(error, within=kind)) from error


def parse(kind: str, value: Any) -> Any:
    """As `build`, but ValidationErrors say at which field, for the message that names the whole key."""
    if type(value) in classes(kind).values():
        return value
    model = settings(kind, _name(kind, value))
    given = {key: item for key, item in named(kind, value).items() if item != "???"}
    try:
        read = model.model_validate(given)
    except ValidationError as error:
        raise errors.located(error, model) from error
    values = {key: getattr(read, key) for key in model.model_fields}
    absent = [key for key, item in values.items() if item == "???"]
    if absent:
        raise ValueError(f"{kind} {values['name']} needs {', '.join(absent)}")
    return classes(kind)[values["name"]](**values)


@cache
def settings(kind: str, name: str) -> type[Section]:
    """The fields of a method as a section of the schema; what each does is the comment that follows it."""
    cls = _find(kind, name)
    hints, said = get_type_hints(cls), scan.comments(cls)
    keys: dict[str, Any] = {"name": (Literal[name], Field(name, description=f"the {kind}"))}
    for f in fields(cls):
        if f.name != "name":
            keys[f.name] = (hints[f.name], Field("???" if _required(f) else _default(f), description=said.get(f.name)))
    return create_model(f"{kind}.{name}", __base__=Section, __doc__=cls.__doc__, **keys)


def named(kind: str, value: Any) -> dict[str, Any]:
    """A method as a mapping that has a name; ValueError for what is none."""
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, Mapping):
        raise ValueError(f"A {kind} is a name or a mapping, {{name: ...}}, and not {value!r}.")
    if "name" not in value:
        raise ValueError(f"A {kind} needs a name; allowed: {', '.join(names(kind))}.")
    return {**cast(Mapping[str, Any], value)}


def _find(kind: str, name: Any) -> type:
    """The class of that name."""
    if name not in names(kind):
        raise ValueError(f"There is no {kind} called {name!r}; allowed: {', '.join(names(kind))}.")
    return classes(kind)[name]


def _required(f: DataclassField[Any]) -> bool:
    """Whether a field has no default."""
    return f.default is MISSING and f.default_factory is MISSING


def _default(f: DataclassField[Any]) -> Any:
    """The default of a field that has one."""
    return f.default if f.default_factory is MISSING else f.default_factory()


def _name(kind: str, value: Any) -> str:
    """The method's name; ValueError where there is none."""
    name = named(kind, value)["name"]
    _find(kind, name)
    return name


read_methods_by(parse)
