"""What a recipe leaves open: the schedule, by how much is to go; the parameters that train, by the task; and the
learning rate, by the model's width.

A cut takes what a layer can make up for; where little stays, several cuts, with steps between them that heal, end
better. Measured on two data sets. To train its embeddings costs a pruned decoder quality on running text, and gains
some on chats; measured on three texts and one set of chats (both in docs/tried.md). The rate is lowered where the
width is known (`learning_rates.highest`); here it is only seen that nobody's own rate is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pat.pruning import registry
from pat.schema import ALL_BUT_EMBEDDINGS

NAME = "auto"
OPEN: dict[str, Any] = {
    "name": NAME,
    "start": None,
    "end": None,
    "hard_from": None,
    "select_every": None,
    "initial": None,
}

MUCH = 0.85  # above this target one cut is too much at once
ONE_CUT: dict[str, Any] = {"name": "one_shot", "start": 0.3}
SIX_CUTS: dict[str, Any] = {"name": "exponential", "initial": 0.7, "start": 0.15, "end": 0.65, "select_every": 0.1}
_PLACES = {"start", "end", "select_every"}
ROOM = 8  # steps that hold six cuts


def names(kind: str) -> list[str]:
    """What a recipe may name as the method of a kind; for a schedule also `auto`."""
    return [*([NAME] if kind == "schedule" else []), *registry.names(kind)]


def choose(pruners: Mapping[str, dict[str, Any]], num_steps: int) -> None:
    """Put a schedule in the place of each `auto`; what a recipe or the command line gives of it stays. ValueError for a
    pruner of structures."""
    for name, settings in pruners.items():
        schedule = settings["schedule"]
        if schedule["name"] != NAME:
            continue
        sparsity = (settings["budget"] or {}).get("sparsity")
        if not isinstance(sparsity, int | float):
            raise ValueError(
                f"pruners.{name}.schedule=auto chooses by budget.sparsity, which this budget does not have: take "
                "one_shot, cubic, linear, exponential or stepwise"
            )
        given = {key: value for key, value in schedule.items() if value is not None and key != "name"}
        chosen = ONE_CUT if sparsity <= MUCH else SIX_CUTS if set(given) & _PLACES else _six_cuts(num_steps)
        settings["schedule"] = {**chosen, **given}


def _six_cuts(num_steps: int) -> dict[str, Any]:
    """In steps: fractions that are rounded one by one put a seventh cut a step after the sixth."""
    if num_steps < ROOM:
        return SIX_CUTS
    start, every = (max(1, round(SIX_CUTS[key] * num_steps)) for key in ("start", "select_every"))
    return {**SIX_CUTS, "start": start, "end": start + 5 * every, "select_every": every}


def choose_trainable(content: Mapping[str, Any]) -> None:
    """What trains where the config says `auto`: all; of a pretrained model on running text all but embeddings, unless
    adapters train."""
    optim = content["optim"]
    if NAME in optim["trainable"]:
        if len(optim["trainable"]) > 1:
            raise ValueError(f"optim.trainable={optim['trainable']}: auto stands by itself, or name what trains")
        learned = content["model"]["init"] == "pretrained" and content["peft"]["r"] is None
        keep = learned and content["task"]["name"] == "causal_lm"
        optim["trainable"] = [ALL_BUT_EMBEDDINGS if keep else "*"]


def keep_given_rate(optim: dict[str, Any], given: Collection[str], adapters: bool = False) -> None:
    """A rate of the command line is the rate at any width: the recipe's base_width belongs to the recipe's rate. So is
    that of adapters, whose matrices have as many inputs as their rank."""
    if (adapters or "optim.lr" in given) and "optim.base_width" not in given:
        optim["base_width"] = None


def changes(choices: Mapping[str, Any], pruner: str, targets: Collection[float]) -> bool:
    """Whether these targets have more than one schedule; choices: Hydra's, group -> file."""
    return choices.get(f"schedule@pruners.{pruner}.schedule") == NAME and min(targets) <= MUCH < max(targets)
