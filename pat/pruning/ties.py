"""Whether scores say anything. Of equal scores the index decides, and a tie of a whole matrix or site deletes a part of
it, or whole layers, for no reason: that is an error, before training where the config shows it.

# G matrices, U units of a site
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pat.common.comm import Comm
from pat.pruning.criteria import Criterion
from pat.pruning.gates import Gate, Ranked
from pat.pruning.schedules import Timeline
from pat.pruning.structures.gate_training import GateTraining
from pat.pruning.structures.grid import by_structure
from pat.pruning.structures.sites import Site
from pat.pruning.types import Run
from pat.pruning.weights.arrays import array, chunks, module


def starts_equal(criterion: Criterion) -> bool:
    """Whether different weights have equal ranks before the first step's evidence."""
    weights = torch.tensor([-2.0, -0.5, 1.0, 3.0])
    score = criterion.initial(weights) if criterion.needs_score else None
    ranks = criterion.rank(score, weights) + criterion.prior_weight(0) * weights.square()
    return all_equal(ranks)


def all_equal(scores: Tensor) -> bool:
    """Whether there are several scores, and all are one."""
    return scores.numel() > 1 and bool((scores == scores.flatten()[0]).all())


def tied_matrices(runs: Sequence[Run], names: Sequence[str], comm: Comm) -> set[str]:
    """The matrices whose scores are all equal, over all ranks. Collective."""
    index = {name: g for g, name in enumerate(names)}
    most = torch.full((2, len(names)), -torch.inf, dtype=torch.float64)  # of the scores, and of their negatives
    for run in runs:
        value = _only_value(run)
        ends = torch.tensor([torch.inf, torch.inf] if value is None else [value, -value], dtype=torch.float64)
        most[:, index[run.name]] = torch.maximum(most[:, index[run.name]], ends)
    highest, lowest = comm.max(most)
    return {name for name, g in index.items() if highest[g] == -lowest[g]}


def _only_value(run: Run) -> float | None:
    """The score of all weights of a run; None where two differ, which the first chunk says as a rule."""
    xp, scores = module(run.scores), array(run.scores)
    first = float(scores[0])
    for part in chunks(run.scores):
        if bool(xp.any(scores[part] != first)):
            return None
    return first


def check_matrices(
    place: str,  # pruners.NAME
    removed: Mapping[str, int],  # weights by matrix
    numel: Mapping[str, int],
    tied: set[str],  # matrices with one score for all
    may_be_empty: bool,
) -> None:
    """ValueError where a selection took a part of a matrix by index, or all of it."""
    by_index = [name for name in tied if removed[name] and numel[name] > 1]
    if by_index:
        raise ValueError(
            f"{place}: all scores of {_some(by_index)} are equal, so its index would decide which weights go: it has "
            f"had no evidence (no gradient, or all weights are 0); select later (schedule.start), or exclude it"
        )
    empty = [name for name, n in removed.items() if n == numel[name]]
    if empty and not may_be_empty:
        raise ValueError(
            f"{place} would remove every weight of {_some(empty)}: rank each matrix by itself (scope: matrix), lower "
            "budget.sparsity, exclude it, or allow that with allow_empty_matrices: true"
        )


def check_sites(place: str, sites: Sequence[Site], scores: Mapping[str, Tensor], keep: Mapping[str, Tensor]) -> None:
    """ValueError where a selection took units of a site, or whole layers, by index."""
    for structure, own in by_structure(sites).items():
        together = [own] if own[0].num_units == 1 else [[site] for site in own]  # whole layers are ranked together
        for group in together:
            gone = not all(bool(keep[site.name].all()) for site in group)
            if gone and all_equal(torch.cat([scores[site.name] for site in group])):
                where = structure if len(group) > 1 else group[0].name
                raise ValueError(
                    f"{place}: all scores of {where} are equal, so its index would decide which units go: it has had "
                    "no evidence; select later (schedule.start), or prune other structures"
                )


def check_first_choice(
    name: str,  # of the pruner
    method: Gate,
    training: GateTraining,
    score: Tensor,  # (U,) before any step
    line: Timeline,
    due: Callable[[int], float],  # share of the budget at a step
) -> None:
    """ValueError where the first units would be chosen before a step has given evidence."""
    ranked = isinstance(method, Ranked)
    soft = [t for t in range(line.start, line.hard) if line.is_selection_step(t) and due(t)] if ranked else []
    first = (soft or [line.hard])[0]
    if all_equal(score) and not any(training.learns(line.phase(t)) for t in range(first)):
        raise ValueError(
            f"pruners.{name} chooses units at step {first}, when gate {method.name} has learned from no step and all "
            f"scores are equal: raise schedule.{'start' if ranked else 'hard'}, or rank by the weights (magnitude)"
        )


def _some(names: Sequence[str]) -> str:
    more = len(names) - 1
    return sorted(names)[0] + (f" and {more} more {'matrix' if more == 1 else 'matrices'}" if more else "")
