"""Matrices whose scores are all equal: part of such a matrix would go by index, for no reason. That is an error,
raised before training where the config shows it.

# G matrices
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from pat.common.comm import Comm
from pat.pruning.criteria import Calibrated, Criterion
from pat.pruning.schedules import Timeline
from pat.pruning.ties import starts_equal
from pat.pruning.types import ScoredSegment
from pat.pruning.weights.arrays import array, chunks, module


def check_first_choice(
    place: str,  # pruners.NAME
    criterion: Criterion,
    line: Timeline,
    sparsity: float,  # of the budget
) -> None:
    """ValueError where the first weights would go before a step has given evidence."""
    if isinstance(criterion, Calibrated):
        return
    by_threshold = criterion.threshold is not None
    at_once = line.hard_from == 0 if by_threshold else line.start == 0 and line.target(0, sparsity) > 0.0
    if at_once and starts_equal(criterion):
        raise ValueError(
            f"{place} removes weights at step 0, before {criterion.name} has seen a gradient, so all scores are equal: "
            "set schedule.start to some steps or a fraction of the run, or take a criterion that looks at the weights "
            "(magnitude)"
        )


def tied_matrices(segments: Sequence[ScoredSegment], names: Sequence[str], comm: Comm) -> set[str]:
    """The matrices whose scores are all equal, over all ranks. Collective."""
    index = {name: g for g, name in enumerate(names)}
    most = torch.full((2, len(names)), -torch.inf, dtype=torch.float64)  # of the scores, and of their negatives
    for segment in segments:
        value = _only_value(segment)
        ends = torch.tensor([torch.inf, torch.inf] if value is None else [value, -value], dtype=torch.float64)
        most[:, index[segment.name]] = torch.maximum(most[:, index[segment.name]], ends)
    highest, lowest = comm.max(most)
    return {name for name, g in index.items() if highest[g] == -lowest[g]}


def _only_value(segment: ScoredSegment) -> float | None:
    """The score of all weights of a segment; None where two differ, which the first chunk usually shows."""
    xp, scores = module(segment.scores), array(segment.scores)
    first = float(scores[0])
    for part in chunks(segment.scores):
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
    """ValueError where a selection took a part of a matrix by index, or all of one that may not be empty."""
    whole = {name for name in tied if may_be_empty and removed[name] == numel[name]}
    by_index = [name for name in tied - whole if removed[name] and numel[name] > 1]
    if by_index:
        raise ValueError(
            f"{place}: all scores of {_some(by_index)} are equal, so an index would decide which weights go: there "
            f"was no evidence (no gradient, or all weights are 0); select later (schedule.start), or exclude it"
        )
    empty = [name for name, n in removed.items() if n == numel[name]]
    if empty and not may_be_empty:
        raise ValueError(
            f"{place} would remove every weight of {_some(empty)}: rank each matrix by itself (scope: matrix), lower "
            "budget.sparsity, exclude it, or allow that with allow_empty_matrices: true"
        )


def _some(names: Sequence[str]) -> str:
    more = len(names) - 1
    return sorted(names)[0] + (f" and {more} more {'matrix' if more == 1 else 'matrices'}" if more else "")
