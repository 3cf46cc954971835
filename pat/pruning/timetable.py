"""A pruner's schedule in the steps of its run, in plain words, with warnings of what is likely to cost quality."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from pat.pruning.criteria import Calibrated
from pat.pruning.gates import CalibratedGate, Learned
from pat.pruning.gates.similarity import Similarity
from pat.pruning.structures.pruner import StructurePruner
from pat.pruning.weights.pruner import WeightPruner

JUMP = 0.20  # sparsity that may go at once
FEW = 4  # selections on the way to a target that is more than one jump away
RECOVERY = 0.05  # of the run, after the last selection
SHOWN = 6  # targets in a sentence

Moves = Sequence[tuple[int, float]]  # (step, sparsity from there on)


def moves(pruner: WeightPruner | StructurePruner) -> Moves:
    """The steps of the schedule at which sparsity rises, and to what: those of a selection, or each step of a learned
    gate's ramp."""
    line, reached = pruner.timeline.planned, 0.0
    rises: list[tuple[int, float]] = []
    continuous = _continuous(pruner)
    for t in range(line.hard_from if _by_threshold(pruner) else line.start, line.hard_from + 1):
        if continuous or line.is_selection_step(t):
            target = pruner.reachable(t)
            if target > reached:
                rises.append((t, target))
                reached = target
    return rises


def in_words(pruner: WeightPruner | StructurePruner) -> str:
    """When it prunes how much, in a sentence."""
    line, rises = pruner.timeline, moves(pruner)
    shown = rises if len(rises) <= SHOWN else [rises[i * (len(rises) - 1) // (SHOWN - 1)] for i in range(SHOWN)]
    if not line.num_steps:
        return f"{percent(pruner.target(0))} at once, without training"
    told = ", ".join(f"{percent(target)} at step {t}" for t, target in shown)
    told += f" ({len(shown)} of them)" if len(shown) < len(rises) else ""
    if _by_threshold(pruner):
        how = f"a threshold decides from step {line.start} on, the budget at step {line.hard_from}: {told}"
    elif len(rises) == 1:
        how = f"all at once: {told}"
    else:
        apart = [later - step for (step, _), (later, _) in itertools.pairwise(rises)]
        regular = line.select_every > 1 and not _continuous(pruner) and max(apart, default=0) <= line.select_every
        every = f" every {line.select_every} steps" if regular else ""
        how = f"{len(rises)} rises{every} ({line.schedule.name}): {told}"
    left = line.num_steps - line.hard_from
    return f"{steps(line.start)} dense; {how}; permanent from step {line.hard_from}, {steps(left)} left to recover"


def warnings(pruner: WeightPruner | StructurePruner) -> list[str]:
    """Jumps, too few selections, no time to recover: a sentence each, with what to change."""
    line, rises, place = pruner.timeline, moves(pruner), f"pruners.{pruner.name}.schedule"
    said: list[str] = []
    if not line.num_steps:
        return said  # nothing is trained, and that is what was asked for
    before = [0.0, *(target for _, target in rises)]
    rise, index = max(((after - then, i) for i, (then, (_, after)) in enumerate(zip(before, rises, strict=False))),
                      default=(0.0, 0))  # fmt: skip
    judged = not _by_threshold(pruner) and not _cuts_at_once(pruner) and _rises_by(pruner, JUMP)
    ramped = line.schedule.needs_end and judged
    if rise > JUMP and judged:
        mend = (
            "lower `select_every`, or let `end` come later" if ramped else "take a schedule that ramps, such as cubic"
        )
        said.append(
            f"{place}: sparsity jumps by {round(100 * rise)} points at step {rises[index][0]}, from "
            f"{percent(before[index])} to {percent(rises[index][1])}: {mend}"
        )
    if ramped and 1 < len(rises) < FEW and rises[-1][1] > JUMP:
        said.append(
            f"{place}: only {len(rises)} selections on the way to {percent(rises[-1][1])}: lower `select_every` "
            f"({line.select_every})"
        )
    left = line.num_steps - line.hard_from
    if left <= max(1, RECOVERY * line.num_steps):
        said.append(
            f"{place}: the last selection is at step {line.hard_from} of {line.num_steps}, with {steps(left)} left to "
            "recover: let `end` and `hard_from` come earlier, such as 0.7"
        )
    return said


def percent(share: float) -> str:
    """`12.5 %`, of a share of 1."""
    return f"{100 * share:.3g} %"


def _cuts_at_once(pruner: WeightPruner | StructurePruner) -> bool:
    """Whether the method sees how a cut changes outputs, or is meant to drop layers together."""
    if isinstance(pruner, WeightPruner):
        return isinstance(pruner.criterion, Calibrated)
    return isinstance(pruner.method, (CalibratedGate, Similarity))


def _by_threshold(pruner: WeightPruner | StructurePruner) -> bool:
    return isinstance(pruner, WeightPruner) and pruner.criterion.threshold is not None


def _continuous(pruner: WeightPruner | StructurePruner) -> bool:
    """Learned gates follow the target at every step."""
    return isinstance(pruner, StructurePruner) and isinstance(pruner.method, Learned)


def _rises_by(pruner: WeightPruner | StructurePruner, share: float) -> bool:
    """Whether a smaller rise is possible at all: with 2:4 it is not, so a warning would be pointless."""
    try:
        if isinstance(pruner, WeightPruner):
            pruner.granularity.validate_target(share)
    except ValueError:
        return False
    return True


def steps(count: int) -> str:
    """`1 step`, `2,000 steps`."""
    return "1 step" if count == 1 else f"{count:,} steps"
