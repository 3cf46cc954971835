"""What a recipe leaves open: the schedule, by how much is to go; the parameters that train, by the task; and the
learning rate, by the model's width.

A cut takes what a layer can make up for; where little stays, several cuts, with steps between them that heal, end
better. Measured on two data sets. To train its embeddings costs a pruned decoder quality on running text, and gains
some on chats; measured on three texts and one set of chats (both in docs/tried.md). The rate is lowered where the
width is known (`learning_rates.highest`); here it is only seen that nobody's own rate is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

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
        schedule = _part(name, "schedule", settings)
        if schedule["name"] != NAME:
            settings["schedule"] = _without_open(schedule)
            continue
        sparsity = _part(name, "budget", settings).get("sparsity")
        if isinstance(sparsity, str):
            raise ValueError(f"pruners.{name}.budget.sparsity is {sparsity!r}, a text, but must be a number")
        if not isinstance(sparsity, int | float):
            raise ValueError(
                f"pruners.{name}.schedule=auto chooses by budget.sparsity, which this budget does not have: take "
                "one_shot, cubic, linear, exponential or stepwise"
            )
        given = {key: value for key, value in schedule.items() if value is not None and key != "name"}
        chosen = ONE_CUT if sparsity <= MUCH else SIX_CUTS if set(given) & _PLACES else _six_cuts(num_steps)
        settings["schedule"] = {**chosen, **given}


def _part(name: str, kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A method of a pruner; ValueError, with its key, for what is none."""
    try:
        return registry.named(kind, settings[kind])
    except ValueError as error:
        raise ValueError(f"pruners.{name}.{kind}: {error}") from None


def _without_open(schedule: dict[str, Any]) -> dict[str, Any]:
    """Another schedule in the place of `auto`, which may have left null where this one has a default of its own."""
    if schedule["name"] not in registry.names("schedule"):
        return schedule
    own = registry.defaults("schedule", schedule["name"])
    return {
        key: value
        for key, value in schedule.items()
        if value is not None or key not in OPEN or (key in own and own[key] is None)
    }


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


def keep_given_rate(optim: dict[str, Any], given: Collection[str], at_any_width: bool = False) -> None:
    """A rate of the command line is the rate at any width: the recipe's base_width belongs to the recipe's rate.

    at_any_width: so is the config's, as that of adapters, whose matrices have as many inputs as their rank.
    """
    if (at_any_width or "optim.lr" in given) and "optim.base_width" not in given:
        optim["base_width"] = None


def has_own_rate(recipe: str | None, folders: Sequence[Path]) -> bool:
    """Whether a recipe sets optim.lr, and leaves base_width to one that it builds on, to whose rate that belongs."""
    path = next((path for each in folders if (path := each / "recipe" / f"{recipe}.yaml").is_file()), None)
    content: Any = None if path is None else yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, Mapping):
        return False
    written = cast(Mapping[str, Any], content)
    optim: Any = written.get("optim")
    if isinstance(optim, Mapping) and {"lr", "base_width"} & set(cast(Mapping[str, Any], optim)):
        return "base_width" not in optim
    built_on = [each for each in written.get("defaults") or [] if isinstance(each, str) and each != "_self_"]
    return any(has_own_rate(each.removeprefix("/recipe/"), folders) for each in built_on)


def changes(choices: Mapping[str, Any], pruner: str, targets: Collection[float]) -> bool:
    """Whether these targets have more than one schedule; choices: Hydra's, group -> file."""
    return choices.get(f"schedule@pruners.{pruner}.schedule") == NAME and min(targets) <= MUCH < max(targets)
