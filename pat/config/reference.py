"""Writes what is made of the schema: conf/config.yaml, and config.md, its JSON schema and prompts.md in docs/reference.

python -m pat.config.reference          after a change of pat/schema.py or of a method's fields
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from pat.common import ignored, scan
from pat.common.annotations import choices, words
from pat.common.keys import MISSING, Method, Section, default_of
from pat.config.task_keys import config_model
from pat.envelope.spec import Limit
from pat.prompts import checks
from pat.prompts.mix import Head, Prompt, Suite
from pat.pruning import registry
from pat.schema import Config, PrunerConfig
from pat.tasks import base

ROOT = Path(__file__).resolve().parents[2]
MAPPINGS = ("envelope", "pruners")  # named by the user
_BOUNDS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}
_HEAD = """\
# Everything that `pat train` can be told: every key, what it does, its default. ??? means: you must choose.
# Made from pat/schema.py by `python -m pat.config.reference`; docs/reference/config.md has types, bounds and methods.
#
#   pat train recipe=NAME key=value ...        a recipe, with some keys changed
#   pat train recipe=NAME --cfg job            print what that comes to, and stop
#
# A recipe (recipes/NAME.yaml, or DIR/recipe/NAME.yaml with --config-dir DIR) only says what differs from this file.
# conf/GROUP/OPTION.yaml are small sets of keys: `engine=zero3`, `model=hub model.path=...`. An unknown key is an error,
# and so is one that another key makes void. model.config and engine.deepspeed are open: add a key of theirs with a
# plus, `+model.config.attention_dropout=0.1`.

defaults:
  - schema
  - _self_
  - model: hub
  - data: hub
  - task: null # TASKS
  - engine: zero2
  - optim: adamw
  - distill: none
  - peft: none
  - logger: wandb
  - recipe: null
  - override hydra/job_logging: none
  - override hydra/hydra_logging: none
"""
_EXAMPLE = """\
# A mapping of named pruners; {{}} trains dense. One of them, `weights`, as a recipe writes it:
#
#   defaults:
#     - /pruner@pruners.weights: movement                      # {pruners}
#   pruners:
#     weights:
#       params: ["*.self_attn.*_proj.weight", "*.mlp.*.weight"] # {params}
#       exclude: []                                            # {exclude}
#       scope: global                                          # {scope}
#       allow_empty_matrices: false                            # {allow_empty_matrices}
#       budget: {{sparsity: 0.9}}                                # fraction removed at the end, in [0, 1)
#       schedule: {{start: 0.1, end: 0.7, hard_from: 0.8, select_every: 9}} # steps, or fractions with a point
#       masked_grad: {{name: zero, sr_ste: 0.0}}                 # {masked_grad}
#
# Or of structures, which are gone in the exported model: it is smaller and faster. `narrow`, as a recipe writes it:
#
#   defaults:
#     - /pruner@pruners.narrow: l0
#   pruners:
#     narrow:
#       structures: [ffn, kv_groups]                           # {structures}
#       gate: {{lr: 0.1}}                                        # or, of a method that ranks: {{fade: 10}}
#       budget: {{keep: {{ffn: 768, kv_groups: 2}}}}               # of every layer; of parameters: {{sparsity: 0.3}}
#       schedule: {{start: 0.1, end: 0.6, hard_from: 0.7}}       # initial: the sparsity at `start`
#
# What a group line selects are four methods (three of structures), each of which can be named by itself, in a recipe
# `- /criterion@pruners.weights.criterion: taylor`, on the command line pruners.weights.criterion.name=taylor:
#
{methods}
pruners: {{}}

# How much worse than the dense model the metrics of the task may get while more and more is pruned; {{}}: no limit.
#
#   envelope:
#     accuracy: {{drop: 0.01}}                                 # {drop}
#     loss: {{ratio: 1.05}}                                    # {ratio}
#
envelope: {{}}
"""
_HYDRA = """\
hydra:
  output_subdir: null
  run: { dir: . }
  sweep: { dir: runs, subdir: . } # `pat train -m` leaves multirun.yaml, the record of the sweep, there
  job: { chdir: false }
"""
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


def files() -> dict[Path, str]:
    """What each file holds, by its path in a checkout."""
    return {
        Path("conf/config.yaml"): config_yaml(),
        Path("docs/reference/config.md"): config_md(),
        Path("docs/reference/prompts.md"): prompts_md(),
        Path("docs/reference/config.schema.json"): json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n",
    }


def config_yaml() -> str:
    """Hydra's primary config: every key with its default, and what it does behind it."""
    blocks = [_HEAD.replace("TASKS", " | ".join(base.names()))]
    for name, info in config_model().model_fields.items():
        value = default_of(info)
        if isinstance(value, Section):
            blocks.append(f"{name}: # {_first_line(type(value))}\n" + "".join(_lines(type(value), "  ")))
        elif name not in MAPPINGS:
            blocks.append(f"{name}: {_yaml(info)} # {comment(info)}\n")
    fields = PrunerConfig.model_fields | Limit.model_fields
    said = {name: comment(info) for name, info in fields.items()}
    options = sorted(path.stem for path in (ROOT / "conf" / "pruner").glob("*.yaml"))
    methods = "\n".join(
        f"#   {kind:<12} {', '.join(registry.names(kind))}" for kind in registry.PACKAGES if kind != "structure"
    )
    blocks.append(_EXAMPLE.format(**said, pruners=f"conf/pruner: {', '.join(options)}", methods=methods))
    return "\n".join([*blocks, _HYDRA])


def config_md() -> str:
    """A table for each section, and for each method of a pruner."""
    blocks = [_INTRO, _table("Top", "", config_model())]
    for name, info in config_model().model_fields.items():
        value = default_of(info)
        if isinstance(value, Section):
            blocks.append(_table(f"`{name}`", _first_line(type(value)), type(value)))
    blocks.append(_table("`envelope.METRIC`", _first_line(Limit), Limit))
    blocks.append(_table("`pruners.NAME`", _first_line(PrunerConfig), PrunerConfig))
    for kind in registry.PACKAGES:
        if kind == "structure":
            listed = "".join(f"- `{name}`: {_first_line(cls)}\n" for name, cls in registry.classes(kind).items())
            blocks.append(f"## `pruners.NAME.structures`\n\n{listed}\n")
            continue
        blocks.append(f"## `pruners.NAME.{kind}`\n\n")
        for name in registry.names(kind):
            blocks.append(
                _table(f"`{name}`", _first_line(registry.classes(kind)[name]), registry.settings(kind, name), 3)
            )
    return "".join(blocks).rstrip() + "\n"


def prompts_md() -> str:
    """A table for the settings of a prompt mix, for a prompt, and for each check."""
    blocks = [_PROMPTS, _table("`mix`", _first_line(Head), Head), _table("A prompt", _first_line(Prompt), Prompt)]
    blocks.append(_table("A suite", _first_line(Suite), Suite))
    blocks.append("## `checks`\n\n")
    for name, cls in checks.classes().items():
        blocks.append(_table(f"`{name}`", _first_line(cls), cls, 3))
    return "".join(blocks).rstrip() + "\n"


def json_schema() -> dict[str, Any]:
    """For editors: what may stand in a recipe. Nothing is required, for a recipe only says what differs."""
    made: Any = config_model().model_json_schema()
    for kind in registry.PACKAGES:
        if kind != "structure":
            for name in registry.names(kind):
                method = registry.settings(kind, name).model_json_schema()
                made["$defs"] |= {f"{kind}.{name}": {**method, "title": f"{kind} {name}"}}
    made["properties"] |= {"defaults": {"type": "array"}, "hydra": {"type": "object"}}
    made["title"] = "A recipe of pat"
    _for_editors(made)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def comment(info: FieldInfo) -> str:
    """What a key does, with the choices where the description does not go through them."""
    said = info.description or ""
    named = [str(value) for value in choices(info.annotation) if value is not None]
    return said if all(re.search(rf"\b{name}\b", said) for name in named) else f"{' | '.join(named)}: {said}"


def write(root: Path = ROOT) -> None:
    """Write all files below a checkout."""
    for path, text in files().items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def _lines(model: type[Section], indent: str) -> Iterator[str]:
    """`key: default # what it does`, of a section."""
    for name, info in model.model_fields.items():
        if isinstance(info.default, Section):
            yield f"{indent}{name}: # {comment(info)}\n"
            yield from _lines(type(info.default), indent + "  ")
        else:
            yield f"{indent}{name}: {_yaml(info)} # {comment(info)}\n"


def _extra(info: FieldInfo) -> dict[str, Any]:
    return info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}


def _yaml(info: FieldInfo) -> str:
    """A default as YAML on one line."""
    if info.is_required():
        return MISSING
    value = _extra(info).get("composed", default_of(info))
    if isinstance(value, str) and not re.fullmatch(r"[\w.-]+|\?\?\?|(runs/)?\$\{.*\}", value):
        return f"'{value}'" if '"' in value else f'"{value}"'
    if isinstance(value, float) and "e" in repr(value):
        mantissa, _, exponent = repr(value).partition("e")
        return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{int(exponent)}"
    return value if isinstance(value, str) else json.dumps(value)


def _table(title: str, intro: str, model: type[Section], level: int = 2) -> str:
    """A heading, what the section is for, and a row a key."""
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
                f"`{_yaml(info)}`",
                _allowed(info),
                (info.description or "") + _only_with(info, f"{_section_of(model)}.{name}"),
            )


def _fixed(model: type[Section]) -> bool:
    """Whether the key `name` says which method or check it is: the heading has it."""
    return bool(model.__name__.count(".")) or issubclass(model, checks.Check)


def _type(info: FieldInfo) -> str:
    """The type in words; of a choice, of what."""
    method = next((item for item in info.metadata if isinstance(item, Method)), None)
    if method:
        return "a name, or a mapping with it"
    if named := choices(info.annotation):
        return ("a whole number" if isinstance(named[0], int) else "text") + (" or null" if None in named else "")
    return words(info.annotation).replace(" [a, b]", "").replace(" {key: value}", "")


def _allowed(info: FieldInfo) -> str:
    method = next((item for item in info.metadata if isinstance(item, Method)), None)
    if method:
        return ", ".join(registry.names(method.kind))
    if package := _extra(info).get("names_in"):
        return ", ".join(scan.declared(str(package)))
    if named := choices(info.annotation):
        return ", ".join("null" if value is None else str(value) for value in named)
    bounds = [
        (word, getattr(item, name)) for item in info.metadata for name, word in _BOUNDS.items() if hasattr(item, name)
    ]
    return ", ".join(word.format(int(bound) if bound == int(bound) else bound) for word, bound in bounds)


def _only_with(info: FieldInfo, place: str) -> str:
    """The conditions of a key, without the point that stands for the same section."""
    conditions = ignored.resolved(str(_extra(info).get("only_with", "")), place, base.taking)
    return f"; *only with* `{', '.join(map(ignored.shown, conditions))}`" if any(conditions) else ""


def _section_of(model: type[Section]) -> str | None:
    """The name of a section of the config; None for what is no section of its own."""
    return next((name for name, info in config_model().model_fields.items() if type(default_of(info)) is model), None)


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").strip().splitlines()[0]


def _for_editors(node: Any) -> None:
    """Also ${...} where a number stands; no default where the user must choose; nothing of our own."""
    if isinstance(node, list):
        for item in node:
            _for_editors(item)
    elif isinstance(node, dict):
        for key in ("composed", "only_with", "inherited"):
            if not isinstance(node.get(key), dict):
                node.pop(key, None)
        # Versions of pydantic differ in what says the same.
        if node.get("additionalProperties") is True:
            del node["additionalProperties"]
        for bound in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
            if isinstance(node.get(bound), float) and node[bound].is_integer():
                node[bound] = int(node[bound])
        if node.get("default") == MISSING:
            del node["default"]
        if kind := node.pop("x-method", None):  # a name, or fields of one: recipes leave `name` to the defaults list
            names = registry.names(kind)
            node["anyOf"] = [{"type": "null"}, {"enum": names}, *({"$ref": f"#/$defs/{kind}.{name}"} for name in names)]
        if package := node.pop("names_in", None):
            node.get("items", node)["anyOf"] = [{"enum": scan.declared(package)}, {"pattern": r"^(\$\{|\?\?\?)"}]
        if isinstance(node.get("enum"), list):
            node["enum"] = sorted(node["enum"], key=str)  # see choices
        if node.get("type") in ("integer", "number", "boolean"):
            node |= {"type": [node["type"], "string"], "pattern": r"^(\$\{|\?\?\?)"}
        for item in node.values():
            _for_editors(item)


if __name__ == "__main__":
    write()
