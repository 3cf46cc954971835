"""Sites whose scores are all equal: units, or whole layers, would go by index, for no reason. That is an error, raised
before training where the config shows it.

# U units of a site
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pat.pruning.gates import GateMethod, Ranked
from pat.pruning.schedules import Timeline
from pat.pruning.structures.gate_training import GateTraining
from pat.pruning.structures.grid import by_structure
from pat.pruning.structures.sites import Site
from pat.pruning.ties import all_equal


def check_sites(place: str, sites: Sequence[Site], scores: Mapping[str, Tensor], keep: Mapping[str, Tensor]) -> None:
    """ValueError where a selection took units of a site, or whole layers, by index."""
    for structure, own in by_structure(_still_computed(sites, keep)).items():
        together = [own] if own[0].num_units == 1 else [[site] for site in own]  # whole layers are ranked together
        for group in together:
            gone = not all(bool(keep[site.name].all()) for site in group)
            if gone and all_equal(torch.cat([scores[site.name] for site in group])):
                where = structure if len(group) > 1 else group[0].name
                raise ValueError(
                    f"{place}: all scores of {where} are equal, so an index would decide which units go: there was no "
                    "evidence; select later (schedule.start), or prune other structures"
                )


def _still_computed(sites: Sequence[Site], keep: Mapping[str, Tensor]) -> list[Site]:
    """Without the sites inside a layer or sublayer that is closed: their evidence is 0, and their units go with it."""
    closed = {(site.layer, site.sublayer) for site in sites if not site.features and not bool(keep[site.name].any())}
    return [
        site
        for site in sites
        if not (site.sublayer is not None and (site.layer, None) in closed)
        and not (site.features and (site.layer, site.sublayer) in closed)
    ]


def check_first_choice(
    name: str,  # of the pruner
    method: GateMethod,
    training: GateTraining,
    score: Tensor,  # (U,) before any step
    line: Timeline,
    due: Callable[[int], float],  # share of the budget at a step
) -> None:
    """ValueError where the first units would be chosen before a step has given evidence."""
    ranked = isinstance(method, Ranked)
    if all_equal(score) and not ranked and line.start >= line.hard_from:
        raise ValueError(
            f"pruners.{name}.gate={method.name} learns which units go between schedule.start and hard_from, which are "
            f"both step {line.start}: give schedule.hard_from a later step, or take a schedule that ramps, such as "
            f"pruners.{name}.schedule.name=linear with schedule.end"
        )
    soft = [t for t in range(line.start, line.hard_from) if line.is_selection_step(t) and due(t)] if ranked else []
    first = (soft or [line.hard_from])[0]
    if all_equal(score) and not any(training.learns(line.phase(t)) for t in range(first)):
        raise ValueError(
            f"pruners.{name} selects units at step {first}, before its gate method {method.name} has learned anything, "
            f"so all scores are equal: raise schedule.{'start' if ranked else 'hard_from'}, or rank by the weights "
            "(magnitude)"
        )
