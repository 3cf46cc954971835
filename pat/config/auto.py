"""What `schedule.name=auto` of a pruner of weights becomes: one cut or several, by how much is to go.

A cut takes what a layer can make up for; where little stays, several cuts, with steps between them that heal, end
better. Measured on two data sets (docs/frontier.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NAME = "auto"
OPEN: dict[str, Any] = {
    "name": NAME,
    "start": None,
    "end": None,
    "hard_from": None,
    "select_every": None,
    "initial": None,
}

MUCH = 0.9  # above this target one cut is too much at once
ONE_CUT: dict[str, Any] = {"name": "one_shot", "start": 0.3}
SIX_CUTS: dict[str, Any] = {"name": "exponential", "initial": 0.7, "start": 0.15, "end": 0.65, "select_every": 0.1}


def choose(pruners: Mapping[str, dict[str, Any]]) -> None:
    """Put a schedule in the place of each `auto`; what a recipe or the command line gives of it stays. ValueError for a
    pruner of structures."""
    for name, settings in pruners.items():
        schedule = settings["schedule"]
        if schedule["name"] != NAME:
            continue
        sparsity = (settings["budget"] or {}).get("sparsity")
        if not isinstance(sparsity, int | float):
            raise ValueError(
                f"pruners.{name}.schedule=auto chooses by budget.sparsity, which this budget has not: take one_shot, "
                "cubic, linear, exponential or stepwise"
            )
        given = {key: value for key, value in schedule.items() if value is not None and key != "name"}
        settings["schedule"] = {**(SIX_CUTS if sparsity > MUCH else ONE_CUT), **given}


def changes(choices: Mapping[str, Any], pruner: str, least: float, most: float) -> bool:
    """Whether targets from `least` to `most` have more than one schedule; choices: Hydra's, group -> file."""
    return choices.get(f"schedule@pruners.{pruner}.schedule") == NAME and least <= MUCH < most
