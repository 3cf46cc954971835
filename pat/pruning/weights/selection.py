"""Keeps exactly the k highest scores of all ranks, without gathering them.

# G groups, each with its own k (one in all, or as many as the scope makes); W ranks; a segment: see `ScoredSegment`

Scores are ordered from high to low (-0.0 equals 0.0), equal scores by global index: parameters in name order,
row-major inside. So the result does not depend on the number of ranks or on where they cut the parameters.

    bracket  a sample of all ranks' scores gives every group an interval [low, high] that should hold its k-th score
    scan     one read pass counts the scores above the interval and copies those inside
    narrow   all-reduced histograms of three digits of the copied scores give the k-th score itself
    ties     if only some of the scores equal to it may stay, the tie counts of all segments say which keeps how many
    write    one read pass: keep = score > k-th, or >= where all ties stay; the flags are counted and must be k

A bracket that misses, or holds too many scores to copy, costs time only: that group is narrowed from all its scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pat.common.comm import Comm
from pat.common.typed import floats, ints
from pat.pruning.scopes import Scope
from pat.pruning.types import PromiseBroken, ScoredSegment
from pat.pruning.weights.arrays import array, chunk_numel, chunks, module
from pat.pruning.weights.brackets import find_brackets, sizes_by_rank
from pat.pruning.weights.spans import first_pieces

COPIED_SHARE = 1 / 16  # of a rank's scores: more are not copied, which bounds the memory,
MIN_COPIED = 1 << 16  # but this many always are
DIGITS = ((21, 11), (10, 11), (0, 10))  # (shift, bits) of a 32-bit key


class TargetMissed(PromiseBroken):
    """A selection did not keep exactly what it was asked to keep."""


@dataclass
class Boundary:
    """Where every group is cut: keep the scores above `score` and the first `ties` of the `equal` ones."""

    score: list[float]  # (G,)
    ties: list[int]  # (G,)
    equal: list[int]  # (G,) over all ranks


def select_units(segments: Sequence[ScoredSegment], sparsity: float, scope: Scope, comm: Comm) -> None:
    """Remove exactly `scope.pruned` of the units that all segments hold, the lowest scores first. Collective."""
    units = {name: math.prod(shape) for name, shape in first_pieces(segments, comm).items()}
    pruned = scope.pruned(units, sparsity)
    keep_top_per_group(segments, {g: n - pruned[g] for g, n in scope.totals(units).items()}, scope.group, comm)


def keep_top(segments: Sequence[ScoredSegment], num_keep: int, comm: Comm) -> None:
    """Keep the `num_keep` highest scores of all segments of all ranks; writes `segment.keep`. Collective."""
    _keep_top(segments, [0] * len(segments), {"all parameters": num_keep}, comm)


def keep_top_per_group(
    segments: Sequence[ScoredSegment],
    num_keep: Mapping[str, int],  # by group, the same on every rank
    group: Callable[[str], str],  # of a parameter's name
    comm: Comm,
) -> None:
    """Keep the `num_keep[g]` highest scores of every group g; the collectives are batched. Collective."""
    budgets = {name: num_keep[name] for name in sorted(num_keep)}
    index = {name: g for g, name in enumerate(budgets)}
    _keep_top(segments, [index[group(segment.name)] for segment in segments], budgets, comm)


def keep_above(segments: Sequence[ScoredSegment], threshold: float, comm: Comm) -> None:
    """Write keep = score > threshold. Collective."""
    refuse_nan(segments, comm)
    for segment in segments:
        module(segment.scores).greater(array(segment.scores), threshold, out=_flags(segment))


def refuse_nan(segments: Sequence[ScoredSegment], comm: Comm) -> None:
    """Raise ValueError on every rank if any score of any rank is NaN. Collective."""
    mine = [r.name for r in segments if any(module(r.scores).isnan(array(r.scores)[c]).any() for c in chunks(r.scores))]
    names = sorted({name for each in comm.gather(mine) for name in each})
    if names:
        more = f" and {len(names) - 1} more parameters" if len(names) > 1 else ""
        raise ValueError(
            f"Scores of {names[0]}{more} are NaN, so nothing can be selected; "
            "the training has diverged before, lower the learning rate."
        )


def _keep_top(segments: Sequence[ScoredSegment], groups: Sequence[int], budgets: Mapping[str, int], comm: Comm) -> None:
    """`groups[r]` is the budget that segment r counts against."""
    wanted = torch.tensor(list(budgets.values()), dtype=torch.int64)
    sizes = sizes_by_rank(segments, groups, len(budgets), comm)
    for name, k, n in zip(budgets, ints(wanted), ints(sizes.sum(0)), strict=True):
        if not 0 <= k <= n:
            raise ValueError(f"Cannot keep {k} of the {n} units of {name}; give a number from 0 to {n}.")
    brackets = find_brackets(segments, groups, wanted, sizes, comm)
    boundary, ties = _find_boundary(segments, groups, wanted, brackets, comm)
    quotas = _tie_quotas(segments, groups, boundary, ties, comm)
    kept = torch.zeros_like(wanted)
    for segment, g, ties_here, quota in zip(segments, groups, ties, quotas, strict=True):
        kept[g] += _write(segment, boundary.score[g], ties_here, quota)
    for name, k, n in zip(budgets, ints(wanted), ints(comm.sum(kept)), strict=True):
        if k != n:
            raise TargetMissed(f"Selection kept {n} units of {name} and not {k} ({n - k:+d}).")


# -- scan and narrow ---------------------------------------------------------------------------------------------------


def _find_boundary(
    segments: Sequence[ScoredSegment],
    groups: Sequence[int],
    wanted: Tensor,  # (G,)
    brackets: Sequence[tuple[float, float]],
    comm: Comm,
) -> tuple[Boundary, list[int]]:
    """The boundary of every group, and how many scores equal to it each segment holds. Collective."""
    above, inside, crowded, copies = _scan(segments, groups, brackets, comm)
    rest = wanted - above  # to keep of those inside
    missed = crowded | (rest < 0) | (rest > inside)
    low, high = torch.tensor(brackets, dtype=torch.float64).unbind(1)
    narrow = missed | ((low < high) & (rest > 0))
    score, ties, equal = high.clone(), rest.clone(), torch.where(low < high, 0, inside)
    sources = [segment.scores if missed[g] else copy for segment, g, copy in zip(segments, groups, copies, strict=True)]
    if narrow.any():
        pieces = [(g, source) for g, source in zip(groups, sources, strict=True) if narrow[g]]
        narrowed = _kth_score(pieces, torch.where(missed, wanted, rest) * narrow, comm)
        score, ties, equal = (torch.where(narrow, a, b) for a, b in zip(narrowed, (score, ties, equal), strict=True))
    boundary = Boundary(floats(score), ints(ties), ints(equal))
    split = [0 < kept < all_ for kept, all_ in zip(boundary.ties, boundary.equal, strict=True)]
    here: list[int] = []
    for segment, g, source in zip(segments, groups, sources, strict=True):
        where = source if narrow[g] else segment.scores
        here.append(_count_equal(where, boundary.score[g]) if split[g] else 0)
    return boundary, here


def _scan(
    segments: Sequence[ScoredSegment], groups: Sequence[int], brackets: Sequence[tuple[float, float]], comm: Comm
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """(G,) scores above and (G,) inside each bracket, (G,) too many to copy; the copies of each segment. Collective."""
    tally = torch.zeros(4, len(brackets), dtype=torch.int64)  # NaN, above, inside, crowded
    capacity = max(int(sum(segment.numel for segment in segments) * COPIED_SHARE), MIN_COPIED)
    copies, used = list[Tensor](), 0
    store = torch.empty(capacity, device=segments[0].scores.device) if segments else torch.empty(0)
    widest = max((min(chunk_numel(segment.scores), segment.numel) for segment in segments), default=0)
    flags = torch.empty(2, widest, dtype=torch.bool, device=store.device)
    xp, (from_low, to_high), stored = module(store), array(flags), array(store)
    for segment, g in zip(segments, groups, strict=True):
        (low, high), scores, begin = brackets[g], array(segment.scores), used
        nans = above = inside = 0
        copying = low < high and not tally[3, g]
        for part in chunks(segment.scores):
            chunk = scores[part]
            n = len(chunk)
            a, b = from_low[:n], to_high[:n]
            xp.greater_equal(chunk, low, out=a)
            xp.less_equal(chunk, high, out=b)
            num_a, num_b = int(xp.count_nonzero(a)), int(xp.count_nonzero(b))
            xp.logical_and(a, b, out=a)
            picked = chunk[a] if copying else None
            num_both = int(xp.count_nonzero(a)) if picked is None else len(picked)
            nans += n - (num_a + num_b - num_both)  # a number is above low or below high, or both
            above += n - num_b
            inside += num_both
            if copying and used + num_both > capacity:
                copying, tally[3, g] = False, 1
            if copying:
                stored[used : used + num_both] = picked
                used += num_both
        tally[:3, g] += torch.tensor([nans, above, inside])
        copies.append(store[begin:used])
    tally = comm.sum(tally)
    if tally[0].any():
        refuse_nan(segments, comm)
    return tally[1], tally[2], tally[3] > 0, copies


def _kth_score(
    pieces: Sequence[tuple[int, Tensor]],  # (group, scores)
    ranks: Tensor,  # (G,) counted from 1; 0: the group has no pieces
    comm: Comm,
) -> tuple[Tensor, Tensor, Tensor]:
    """(G,) fp64 the ranks-th highest score, (G,) its place among equal scores, (G,) their number. Collective."""
    prefix, left = torch.zeros_like(ranks), ranks.clone()
    equal = torch.zeros_like(ranks)
    for shift, bits in DIGITS:
        counts = torch.zeros(len(ranks), 1 << bits, dtype=torch.int64)
        for g, scores in pieces:
            for part in chunks(scores):
                digits = (_ordered_key(scores[part]) >> shift).sub_((int(prefix[g]) << bits) - 1)
                digits.clamp_(0, (1 << bits) + 1)  # 0 and the last: another prefix; no selection, it is slow on the CPU
                counts[g] += torch.bincount(digits, minlength=(1 << bits) + 2)[1:-1].cpu()
        counts = comm.sum(counts)
        at_least = counts.flip(1).cumsum(1).flip(1)  # scores with this digit or a higher one
        digit = ((at_least >= left[:, None]).sum(1) - 1)[:, None]
        equal = counts.gather(1, digit).squeeze(1)
        left = left - (at_least.gather(1, digit).squeeze(1) - equal)
        prefix = (prefix << bits) + digit.squeeze(1)
    return _score_of_key(prefix).double(), left, equal


def _ordered_key(scores: Tensor) -> Tensor:
    """int64 in [0, 2^32), increasing with the score; both zeros have one key."""
    bits = (scores.detach() + 0.0).view(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(torch.int64) + (1 << 31)


def _score_of_key(key: Tensor) -> Tensor:
    """The inverse of `_ordered_key`."""
    bits = (key - (1 << 31)).to(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)


# -- ties and write ----------------------------------------------------------------------------------------------------


def _count_equal(scores: Tensor, score: float) -> int:
    xp, values = module(scores), array(scores)
    return sum(int(xp.count_nonzero(values[part] == score)) for part in chunks(scores))


def _tie_quotas(
    segments: Sequence[ScoredSegment], groups: Sequence[int], boundary: Boundary, ties: Sequence[int], comm: Comm
) -> list[int | None]:
    """How many scores equal to the k-th each segment keeps, lowest global index first; None: all. Collective."""
    quotas: list[int | None] = [0 if boundary.ties[g] == 0 else None for g in groups]
    if not any(0 < kept < all_ for kept, all_ in zip(boundary.ties, boundary.equal, strict=True)):
        return quotas
    mine = [(g, segment.name, segment.start, n) for segment, g, n in zip(segments, groups, ties, strict=True) if n]
    table: list[tuple[int, str, int, int]] = sorted(entry for each in comm.gather(mine) for entry in each)
    left, granted = list(boundary.ties), dict[tuple[str, int], int]()
    for g, name, start, n in table:
        granted[name, start] = min(n, left[g])
        left[g] -= granted[name, start]
    return [granted.get((segment.name, segment.start), q) for segment, q in zip(segments, quotas, strict=True)]


def _flags(segment: ScoredSegment) -> Any:
    return array(segment.keep.view(torch.bool))


def _write(segment: ScoredSegment, score: float, ties: int, quota: int | None) -> int:
    """Keep those above `score` and the first `quota` of those equal to it. The number of flags that are up."""
    xp, scores, keep = module(segment.scores), array(segment.scores), _flags(segment)
    whole = quota is None or (quota == ties and ties > 0)
    compare = xp.greater_equal if whole else xp.greater
    left = 0 if quota is None or whole else quota
    kept = 0
    for part in chunks(segment.scores):
        compare(scores[part], score, out=keep[part])
        if left:
            equal = scores[part] == score
            if int(xp.count_nonzero(equal)) > left:
                equal[xp.where(equal)[0][left:]] = False
            xp.logical_or(keep[part], equal, out=keep[part])
            left -= int(xp.count_nonzero(equal))
        kept += int(xp.count_nonzero(keep[part]))
    return kept
