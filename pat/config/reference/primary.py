"""conf/config.yaml, Hydra's primary config: every key with its default, and what it does behind it."""

from __future__ import annotations

from collections.abc import Iterator

from pat.common.keys import Section, default_of
from pat.config import auto, places
from pat.config.reference.keys import MAPPINGS, as_yaml, comment, purpose
from pat.config.task_keys import config_model
from pat.envelope.spec import Limit
from pat.pruning import registry
from pat.schema import PrunerConfig
from pat.tasks import base

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


def config_yaml() -> str:
    """Hydra's primary config: every key with its default, and what it does behind it."""
    blocks = [_HEAD.replace("TASKS", " | ".join(base.names()))]
    for name, info in config_model().model_fields.items():
        value = default_of(info)
        if isinstance(value, Section):
            blocks.append(f"{name}: # {purpose(type(value))}\n" + "".join(_lines(type(value), "  ")))
        elif name not in MAPPINGS:
            blocks.append(f"{name}: {as_yaml(info)} # {comment(info)}\n")
    fields = PrunerConfig.model_fields | Limit.model_fields
    said = {name: comment(info) for name, info in fields.items()}
    options = places.options("pruner")
    methods = "\n".join(
        f"#   {kind:<12} {', '.join(auto.names(kind))}" for kind in registry.PACKAGES if kind != "structure"
    )
    blocks.append(_EXAMPLE.format(**said, pruners=f"conf/pruner: {', '.join(options)}", methods=methods))
    return "\n".join([*blocks, _HYDRA])


def _lines(model: type[Section], indent: str) -> Iterator[str]:
    """`key: default # what it does`, of a section."""
    for name, info in model.model_fields.items():
        if isinstance(info.default, Section):
            yield f"{indent}{name}: # {comment(info)}\n"
            yield from _lines(type(info.default), indent + "  ")
        else:
            yield f"{indent}{name}: {as_yaml(info)} # {comment(info)}\n"
