"""Keep flags from scores, under a limit on what the model costs: the exact choice behind the structures' budgets.

A move narrows one group by one step of its grid, the lowest scores first (equal scores: the higher index first).

    far     again and again the move with the least score lost per cost saved, until one would save too much
    near    then the same among moves that do not save too much; where none is left, the one that saves the least
            or, unless `widest`, loses the least score
    over    or, instead of `near`, the move at which `far` ended, although it saves more than is needed
    back    groups that still fit within the limit grow again, the most score per cost first

Of `near` and `over`, the one that leaves more score is taken: a KV group costs as much as a dozen neurons, and they
must not all go only because removing the worst group saves a little too much. So no group can be wider within the
limit, and with one group, or groups of equal cost per unit, the result is the widest model that the limit allows.
Costs are whole numbers and counted exactly.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from pat.common.typed import floats, ints, split
from pat.models.anatomy import Anatomy
from pat.pruning.structures.costs import Cost, Widths, dense_widths, widths
from pat.pruning.structures.grid import Group, by_structure
from pat.pruning.structures.sites import Site


@dataclass(frozen=True)
class Choice:
    """The units that stay, and what they cost."""

    keep: dict[str, Tensor]  # per site (num_units,) bool
    counts: dict[str, list[int]]  # per structure: the units that every site keeps
    before: int  # what the dense model costs in the budget's quantity,
    after: int  # and the pruned one
    left: str  # exactly what is left, in one line

    def __str__(self) -> str:
        return self.left


def ranked(sites: Sequence[Site], scores: Mapping[str, Tensor]) -> dict[str, list[tuple[float, int]]]:
    """(score, unit) of every site, best first. ValueError for scores that cannot be ranked."""
    rankings: dict[str, list[tuple[float, int]]] = {}
    for site in sites:
        score = scores[site.name].detach().double().cpu()
        assert score.shape == (site.num_units,), f"{site.name} has {site.num_units} units and {score.shape} scores"
        if score.isnan().any():
            raise ValueError(f"The scores of {site.name} are not numbers (NaN): lower the learning rate.")
        order = ints(torch.argsort(score, descending=True, stable=True))
        values = floats(score)
        rankings[site.name] = [(values[unit], unit) for unit in order]
    return rankings


def keep_counts(groups: Sequence[Group], counts: Sequence[int], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keep the given number of units of every group: the highest scores, and of equal ones the lower index."""
    keep: dict[str, Tensor] = {}
    for group, count in zip(groups, counts, strict=True):
        best_first = ranked(group.sites, scores)
        if group.pooled:
            best = sorted(range(len(group.sites)), key=lambda i: (-best_first[group.sites[i].name][0][0], i))[:count]
            keep |= {site.name: torch.tensor([i in best]) for i, site in enumerate(group.sites)}
            continue
        for site in group.sites:
            flags = torch.zeros(site.num_units, dtype=torch.bool)
            flags[[unit for _, unit in best_first[site.name][:count]]] = True
            keep[site.name] = flags
    return keep


def within(
    groups: Sequence[Group],
    scores: Mapping[str, Tensor],
    cost: Cost,
    anatomy: Anatomy,
    limit: int,
    widest: bool = True,
    order: Mapping[str, Tensor] | None = None,  # by which sites of a pooled group go, where that is not `scores`
) -> list[int] | None:
    """The count of every group, so that the model costs at most `limit`; None where even the least costs more."""
    near = _State(groups, scores, cost, anatomy, scores if order is None else order)
    beyond = _far(near, limit)
    over = near.copy()
    if not _near(near, limit, widest):
        return None
    _back(near, limit)
    best = near
    if beyond is not None:
        over.move(beyond, -1)
        _back(over, limit)
        best = over if over.score > near.score else near
    return [group.counts[step] for group, step in zip(groups, best.step, strict=True)]


def _near(state: _State, limit: int, widest: bool) -> bool:
    """Make the smallest moves that make the model fit. Returns whether it fits."""

    def last(move: tuple[float, int, int]) -> tuple[float, float, int]:
        ratio, saved, g = move
        return (saved, ratio, g) if widest else (ratio * saved, saved, g)

    while state.total > limit:
        moves = [(*state.change(g, -1), g) for g, step in enumerate(state.step) if step > 0]
        moves = [(score / saved, saved, g) for score, saved, g in moves if saved]
        if not moves:
            return False
        fits = [move for move in moves if move[1] <= state.total - limit]
        state.move(min(fits)[2] if fits else min(moves, key=last)[2], -1)
    return True


def _back(state: _State, limit: int) -> None:
    """Let groups grow again where they still fit."""
    while wider := [(-state.ratio(g, +1), g) for g in range(len(state.groups)) if state.fits(g, limit)]:
        state.move(min(wider)[1], +1)


def _far(state: _State, limit: int) -> int | None:
    """Moves by score per cost, up to the first that would save more than is needed: its group; None: there is none."""
    heap = state.moves()
    while state.total > limit:
        pooled = [(state.ratio(g), g) for g, group in enumerate(state.groups) if group.pooled and state.step[g] > 0]
        best = min(pooled + heap[:1], default=None)
        if best is None:
            return None
        g = best[1]
        if state.total - state.change(g, -1)[1] < limit:
            return g
        state.move(g, -1)
        if state.groups[g].pooled:
            heap = state.moves()  # units of a dropped layer save nothing more
        else:
            heapq.heappop(heap)
            if state.step[g] > 0:
                heapq.heappush(heap, (state.ratio(g), g))
    return None


def even(sites: Sequence[Site], scores: Mapping[str, Tensor], cost: Cost, dense: Widths) -> dict[str, Tensor]:
    """Scores that mean the same in every structure: (share of its units that a unit beats or equals) * (its cost).

    So every structure loses about the same share of its units, whatever its own scores mean.
    """
    even_scores: dict[str, Tensor] = {}
    for own in by_structure(sites).values():
        flat = torch.cat([scores[site.name].detach().double().cpu() for site in own])
        share = torch.empty(len(flat), dtype=torch.float64)
        share[torch.argsort(flat, descending=True, stable=True)] = torch.arange(len(flat), 0, -1).double() / len(flat)
        for site, part in zip(own, split(share, [site.num_units for site in own]), strict=True):
            even_scores[site.name] = part * cost.per_unit(site, dense)
    return even_scores


def choice(anatomy: Anatomy, sites: Sequence[Site], keep: dict[str, Tensor], cost: Cost, unit: str) -> Choice:
    """The keep flags with what they leave."""
    own = by_structure(sites)
    counts = {name: [int(keep[site.name].sum()) for site in each] for name, each in own.items()}
    before, after = cost.total(dense_widths(anatomy)), cost.total(widths(anatomy, sites, keep))
    left = ", ".join(f"{name} {_of(counts[name], each)}" for name, each in own.items())
    left = f"{left}: {after:,} of {before:,} {unit}, {1 - after / before:.4%} removed"
    return Choice(keep, counts, before, after, left)


def _of(counts: Sequence[int], sites: Sequence[Site]) -> str:
    """The units of every site that stay, or, where a site is one unit, the sites."""
    if not sites[0].features:
        return f"{sum(counts)} of {len(counts)}"
    least, most = min(counts), max(counts)
    return f"{least if least == most else f'{least} to {most}'} of {max(site.num_units for site in sites)}"


class _State:
    """Counts of all groups, and the exact cost of the model that has them."""

    def __init__(
        self,
        groups: Sequence[Group],
        scores: Mapping[str, Tensor],
        cost: Cost,
        anatomy: Anatomy,
        order: Mapping[str, Tensor],
    ) -> None:
        self.groups, self.cost = groups, cost
        self.step = [len(group.counts) - 1 for group in groups]  # index into the group's counts
        self.best_first = ranked([site for group in groups for site in group.sites], scores)
        first = ranked([site for group in groups if group.pooled for site in group.sites], order)
        self.order = {  # the sites of a pooled group, best first, as `keep_counts` takes them
            g: sorted(group.sites, key=lambda site: -first[site.name][0][0])
            for g, group in enumerate(groups)
            if group.pooled
        }
        sites = [site for group in groups for site in group.sites]
        counts = [group.counts[-1] for group in groups]
        left = widths(anatomy, sites, keep_counts(groups, counts, scores))
        self.layers, self.sublayers = list(left.layers), [list(row) for row in left.sublayers]
        self.units = [list(row) for row in left.units]
        self.total: int = cost.total(self.widths)

    def copy(self) -> _State:
        """The same counts, to be changed on their own."""
        twin = copy(self)
        twin.step, twin.layers = list(self.step), list(self.layers)
        twin.sublayers, twin.units = [list(row) for row in self.sublayers], [list(row) for row in self.units]
        return twin

    @property
    def score(self) -> float:
        """Of all units that stay, in the layers that are there."""
        total = 0.0
        for g, (group, step) in enumerate(zip(self.groups, self.step, strict=True)):
            count = group.counts[step]
            if group.pooled:
                total += sum(self.best_first[site.name][0][0] for site in self.order[g][:count])
            else:
                open_sites = [site for site in group.sites if self._open(site)]
                total += sum(value for site in open_sites for value, _ in self.best_first[site.name][:count])
        return total

    @property
    def widths(self) -> Widths:
        return Widths(tuple(self.layers), tuple(map(tuple, self.sublayers)), tuple(map(tuple, self.units)))

    def moves(self) -> list[tuple[float, int]]:
        """A heap of (score lost per cost saved, group) of the groups that are not pooled and can be narrowed."""
        heap = [(self.ratio(g), g) for g, group in enumerate(self.groups) if not group.pooled and self.step[g] > 0]
        heapq.heapify(heap)
        return heap

    def ratio(self, g: int, direction: int = -1) -> float:
        """Score per cost of one step; infinite where it would save nothing."""
        score, cost = self.change(g, direction)
        return score / cost if cost else float("inf")

    def change(self, g: int, direction: int) -> tuple[float, int]:
        """(score, cost) of the units between this step and the next, in the layers that are there."""
        group, here = self.groups[g], self.step[g]
        low, high = sorted((group.counts[here], group.counts[here + direction]))
        if group.pooled:
            gone = self.order[g][low:high]
            return sum(self.best_first[site.name][0][0] for site in gone), sum(map(self._whole, gone))
        score, cost = 0.0, 0
        for site in group.sites:
            if self._open(site):
                score += sum(value for value, _ in self.best_first[site.name][low:high])
                cost += (high - low) * self._sublayer(site)[1]
        return score, cost

    def fits(self, g: int, limit: int) -> bool:
        """Whether the group can be one step wider."""
        if self.step[g] + 1 == len(self.groups[g].counts):
            return False
        return self.total + self.change(g, +1)[1] <= limit

    def move(self, g: int, direction: int) -> None:
        """One step of a group."""
        group = self.groups[g]
        self.total += direction * self.change(g, direction)[1]
        before = group.counts[self.step[g]]
        self.step[g] += direction
        count = group.counts[self.step[g]]
        if group.pooled:
            for site in self.order[g][min(before, count) : max(before, count)]:
                if site.sublayer is None:
                    self.layers[site.layer] = int(direction > 0)
                else:
                    self.sublayers[site.layer][site.sublayer] = int(direction > 0)
            return
        for site in group.sites:
            assert site.sublayer is not None
            self.units[site.layer][site.sublayer] = count

    def _sublayer(self, site: Site) -> tuple[int, int]:
        assert site.sublayer is not None
        return self.cost.sublayers[site.layer][site.sublayer]

    def _open(self, site: Site) -> bool:
        assert site.sublayer is not None
        return bool(self.layers[site.layer] and self.sublayers[site.layer][site.sublayer])

    def _whole(self, site: Site) -> int:
        """The cost of a layer or sublayer as it is now, whether it is there or not; 0 inside a dropped layer."""
        i, j = site.layer, site.sublayer
        if j is not None:
            fixed, unit = self.cost.sublayers[i][j]
            return self.layers[i] * (fixed + unit * self.units[i][j])
        rows = zip(self.cost.sublayers[i], self.sublayers[i], self.units[i], strict=True)
        return self.cost.layers[i] + sum(z * (fixed + unit * n) for (fixed, unit), z, n in rows)
