"""config.md and prompts.md in docs/reference: a table for each section, method and check."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydantic.fields import FieldInfo

from pat.common import ignored, scan
from pat.common.annotations import choices, words
from pat.common.keys import Method, Section, default_of
from pat.config import auto
from pat.config.reference.keys import MAPPINGS, as_yaml, extra, purpose
from pat.config.task_keys import config_model
from pat.envelope.spec import Limit
from pat.prompts import checks
from pat.prompts.mix import Head, Prompt, Suite
from pat.pruning import registry
from pat.schema import Config, PrunerConfig
from pat.tasks import base

_BOUNDS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}
_INTRO = """\
# Every key of the config

Made from `pat/schema.py` and the dataclasses of pruners' methods by `python -m pat.config.reference`. A key with the
default `???` must be given. *only with*: elsewhere the key would be ignored, and a value other than its default is an
error.

Editors with the YAML language server check a recipe and complete its keys when its first line is

    # yaml-language-server: $schema=PATH/docs/reference/config.schema.json

"""
_PROMPTS = """\
# Every key of a prompt mix

Made from `pat/prompts/` by `python -m pat.config.reference`. [compare.md](../compare.md) shows a mix. A key with the
default `???` must be given.

"""


def config_md() -> str:
    """A table for each section, and for each method of a pruner."""
    blocks = [_INTRO, _table("Top", "", config_model())]
    for name, model in _sections():
        blocks.append(_table(f"`{name}`", purpose(model), model))
    for kind in registry.PACKAGES:
        if kind == "structure":
            listed = "".join(f"- `{name}`: {purpose(cls)}\n" for name, cls in registry.classes(kind).items())
            blocks.append(f"## `pruners.NAME.structures`\n\n{listed}\n")
            continue
        blocks.append(f"## `pruners.NAME.{kind}`\n\n")
        for name, cls in registry.classes(kind).items():
            blocks.append(_table(f"`{name}`", purpose(cls), registry.settings(kind, name), 3))
    return "".join(blocks).rstrip() + "\n"


def keys_about(word: str) -> list[tuple[str, str]]:
    """(key=default, what it does) of every key with this word in its name, and of the method of this name."""
    found = []
    for prefix, method, (key, _, default, allowed, what) in _every_key():
        name = prefix + key.strip("`")
        if word in name or (method and word in (method, f"{prefix.split('.')[-2]}.{method}")):
            given = f"{name}={default.strip('`')}" + (f"   of {method}" if method else "")
            among = f" [{allowed}]" if allowed else ""
            plain = re.sub(r"\*(\S[^*]*)\*", r"\1", what).replace("`", "")  # a single * multiplies
            found.append((given, plain + among))
    return found


def _every_key() -> Iterator[tuple[str, str, tuple[str, str, str, str, str]]]:
    """(what stands before the key, the method it is of or "", its row in the tables)."""
    yield from (("", "", row) for row in _rows(config_model(), ""))
    for name, model in _sections():
        yield from ((f"{name}.", "", row) for row in _rows(model, ""))
    for kind in registry.PACKAGES:
        if kind != "structure":
            for method in registry.names(kind):
                rows = _rows(registry.settings(kind, method), "")
                yield from ((f"pruners.NAME.{kind}.", method, row) for row in rows)


def _sections() -> Iterator[tuple[str, type[Section]]]:
    """Every section of the config, by its place."""
    for name, info in config_model().model_fields.items():
        value = default_of(info)
        if isinstance(value, Section):
            yield name, type(value)
    yield "envelope.METRIC", Limit
    yield "pruners.NAME", PrunerConfig


def prompts_md() -> str:
    """A table for the settings of a prompt mix, for a prompt, and for each check."""
    blocks = [_PROMPTS, _table("`mix`", purpose(Head), Head), _table("A prompt", purpose(Prompt), Prompt)]
    blocks.append(_table("A suite", purpose(Suite), Suite))
    blocks.append("## `checks`\n\n")
    for name, cls in checks.classes().items():
        blocks.append(_table(f"`{name}`", purpose(cls), cls, 3))
    return "".join(blocks).rstrip() + "\n"


def _table(title: str, intro: str, model: type[Section], level: int = 2) -> str:
    """A heading, what the section is for, and a row for each key."""
    rows = list(_rows(model, ""))
    head = f"{'#' * level} {title}\n\n" + (f"{intro}\n\n" if intro else "")
    if not rows:
        return head
    head += "| key | type | default | allowed | what it does |\n| --- | --- | --- | --- | --- |\n"
    return (
        head + "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows) + "\n"
    )


def _rows(model: type[Section], prefix: str) -> Iterator[tuple[str, str, str, str, str]]:
    for name, info in model.model_fields.items():
        value, top = default_of(info), issubclass(model, Config)
        if isinstance(value, Section):
            if not top:
                yield from _rows(type(value), f"{prefix}{name}.")
        elif not (top and name in MAPPINGS) and not (name == "name" and _fixed(model)):
            yield (
                f"`{prefix}{info.alias or name}`",
                _type(info),
                f"`{as_yaml(info)}`",
                _allowed(info),
                (info.description or "") + _only_with(info, f"{_section_of(model)}.{name}"),
            )


def _fixed(model: type[Section]) -> bool:
    """Whether the key `name` says which method or check it is: the heading has it."""
    return bool(model.__name__.count(".")) or issubclass(model, checks.Check)


def _type(info: FieldInfo) -> str:
    """The type in words; of a choice, the type of its values."""
    method = next((item for item in info.metadata if isinstance(item, Method)), None)
    if method:
        return "a name, or a mapping with it"
    if named := choices(info.annotation):
        return ("a whole number" if isinstance(named[0], int) else "text") + (" or null" if None in named else "")
    return words(info.annotation).replace(" [a, b]", "").replace(" {key: value}", "")


def _allowed(info: FieldInfo) -> str:
    method = next((item for item in info.metadata if isinstance(item, Method)), None)
    if method:
        return ", ".join(auto.names(method.kind))
    if package := extra(info).get("names_in"):
        return ", ".join(scan.declared(str(package)))
    if named := choices(info.annotation):
        return ", ".join("null" if value is None else str(value) for value in named)
    bounds = [
        (word, getattr(item, name)) for item in info.metadata for name, word in _BOUNDS.items() if hasattr(item, name)
    ]
    return ", ".join(word.format(int(bound) if bound == int(bound) else bound) for word, bound in bounds)


def _only_with(info: FieldInfo, place: str) -> str:
    """The conditions of a key, without the point that stands for the same section."""
    conditions = ignored.resolved(str(extra(info).get("only_with", "")), place, base.taking)
    return f"; *only with* `{', '.join(map(ignored.shown, conditions))}`" if any(conditions) else ""


def _section_of(model: type[Section]) -> str | None:
    """The name of a section of the config; None for what is no section of its own."""
    return next((name for name, info in config_model().model_fields.items() if type(default_of(info)) is model), None)
