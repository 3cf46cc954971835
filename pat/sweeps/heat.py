"""The heat of a race: where its members stop, and which steps they share until then."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pat.config.frozen import changed_keys
from pat.pruning.gates import CalibratedGate
from pat.schema import Config, PrunerConfig
from pat.sweeps.members import Member, checked

_OF_A_PRUNER = re.compile(r"pruners\.([^.]+)\.(budget|gate)\b.*")


@dataclass(frozen=True)
class Heat:
    """What all members run."""

    step: int  # before which they stop
    shared: int = 0  # steps that are trained once; 0: each member begins at the start


def heat(members: Sequence[Member], step: int, here: bool = True) -> Heat:
    """The heat to `step`. ValueError where the members cannot be told apart there. here=False: on other machines."""
    firsts: set[int | None] = set()
    for member in members:
        if not 0 < step < member.config.train.num_steps:
            raise ValueError(
                f"--race {step}: {member.name} has {member.config.train.num_steps} steps: give a step from 1 to "
                f"{member.config.train.num_steps - 1}"
            )
        pruner = checked(member, here).pruner
        firsts.add(pruner.first_soft_step)
        if pruner.last_hard_from >= step:
            raise ValueError(
                f"--race {step}: {member.name} is still being pruned until step {pruner.last_hard_from}, so the runs "
                f"cannot be compared at step {step}: give --race a step after {pruner.last_hard_from}"
            )
    first = firsts.pop()
    together = first is not None and not firsts and 0 < first and _alike_before_a_cut([m.config for m in members])
    return Heat(step, first if together and first else 0)


def end_of(members: Sequence[Member]) -> str:
    """`step 30`, or `its end` where the members have different numbers of steps."""
    ends = {member.config.train.num_steps for member in members}
    return f"step {ends.pop()}" if len(ends) == 1 else "its end"


def _alike_before_a_cut(configs: Sequence[Config]) -> bool:
    """Whether they differ only in budgets, and in gates that look at no step before their cut."""
    for config in configs[1:]:
        for key in changed_keys(configs[0], config):
            match = _OF_A_PRUNER.fullmatch(key)
            pair = [each.pruners.get(match[1]) for each in (configs[0], config)] if match else []
            if not match or not all(_as_well(pruner, match[2]) for pruner in pair):
                return False
    return True


def _as_well(pruner: PrunerConfig | None, kind: str) -> bool:
    return pruner is not None and (kind == "budget" or isinstance(pruner.gate, CalibratedGate))
