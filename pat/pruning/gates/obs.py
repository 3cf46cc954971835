"""OBS: removes the units whose work the others can take over, and lets them take it over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from pat.common.factors import cholesky_, inverted_, solved_
from pat.common.typed import solve
from pat.pruning.calibration.gap import Gap
from pat.pruning.calibration.statistics import Gram, InputStatistic, Mean
from pat.pruning.gates import CalibratedGate, Fit


@dataclass(frozen=True)
class Obs(CalibratedGate):
    """Minimal E||W x + e - V x_K||^2 over the units K that stay and the weights V that read them.

    x is what goes into the matrix now, and e what is missing behind it by now, of the dense model less of the one that
    is pruned below: what stays also makes up for the layers below. x and e are less their means where the matrix has a
    bias, H = E[x x^T] + damping mean(diag) I, and W begins as W + repair E[e x^T] H^-1. Then one unit u after the other
    goes, the one that costs least now. A is H^-1 of what is left, W what has taken over:

        cost_u = tr(W_u A_uu^-1 W_u^T),  W <- W - W_u A_uu^-1 A_u,  A <- A - A_:u A_uu^-1 A_u:

    What W ends as is V, which is W H_:K H_KK^-1 of the W that it began as. The bias gets (W - V) E[x] + repair E[e],
    with the matrix's own W. Source: Kurtic et al. 2023 (ZipLM), arXiv:2302.04089; the bias: An et al. 2023 (FLAP),
    arXiv:2312.11983; e: ours.
    """

    name: str = "obs"
    damping: float = 0.01  # addition to the Gram matrix's diagonal, as a share of its mean; raise it for few samples
    repair: float = 1.0  # share of the earlier layers' pruning error that is repaired; 0: none, and one forward less

    statistics: ClassVar[tuple[type[InputStatistic], ...]] = (Gram, Mean)

    def __post_init__(self) -> None:
        """Refuse a damping that is not positive."""
        super().__post_init__()
        if not self.damping > 0:
            raise ValueError(f"gate.damping is {self.damping}, but must be above 0: 0.01 is usual.")
        if not 0.0 <= self.repair <= 1.0:
            raise ValueError(f"gate.repair is {self.repair}, but must lie between 0 and 1.")

    @property
    def follows(self) -> bool:
        """Whether the walk also runs the model as it was before the cut."""
        return self.repair > 0.0 or super().follows

    def cut_bytes(self, outputs: int, inputs: int) -> int:
        """The weights, in fp64 W, which is in the memory of the gap, H^-1 and STRIP rows of it, and columns."""
        square = inputs * (inputs + 2 * min(STRIP, inputs))
        return (4 + 8) * outputs * inputs + 8 * (square + 2 * CHUNK * (inputs + outputs))

    def cut_flops(self, outputs: int, inputs: int) -> float:
        """A factor and H^-1, i^3; W's beginning, 2 o i^2; and every unit of one input: where n are left it takes
        2 n (n + o) of the updates, 2 n o for the squares, and CHUNK (2 n + 2 o) on average for columns."""
        removals = inputs**3 * 2 / 3 + 2.0 * outputs * inputs**2 + CHUNK * inputs * (inputs + 2 * outputs)
        return inputs**3 + 2.0 * outputs * inputs**2 + removals

    def costs(
        self, weights: Tensor, features: int, inputs: Mapping[type[InputStatistic], Tensor], bias: bool
    ) -> Tensor:
        """(u,) what removing each unit costs, given those removed before it, as a share of tr(W H W^T)."""
        problem = Problem.of(inputs, bias, self.damping)
        wide, gram = weights.double(), problem.whole()
        size = sum(((wide[rows] @ gram) * wide[rows]).sum() for rows in strips(len(wide)))
        order, costs = removals_(wide, inverted_(cholesky_(gram)), features, wide.shape[1] // features)
        return torch.zeros_like(costs).scatter_(0, order, costs) / max(float(size), TINY)

    def cut(
        self,
        weights: Tensor,
        bias: Tensor | None,
        features: int,
        inputs: Mapping[type[InputStatistic], Tensor],
        gap: Gap | None,
        count: int,
    ) -> Fit:
        """The `count` units that stay, and what reads them. RuntimeError where H is not positive."""
        problem = Problem.of(inputs, bias is not None, self.damping)
        shift = None if bias is None else bias.double() + weights.double() @ problem.mean
        factor = cholesky_(problem.whole())
        if gap is None:
            wide = weights.to(torch.float64, copy=True)
        else:
            wide = gap.cross.double()
            if shift is not None:
                wide.addr_(gap.mean, problem.mean, alpha=-1.0)
                shift += self.repair * gap.mean
            solved_(factor, wide).mul_(self.repair).add_(weights)
        units = wide.shape[1] // features
        order, _ = removals_(wide, inverted_(factor), features, units - count)
        del factor
        keep = torch.ones(units, dtype=torch.bool)
        keep[order] = False
        if bias is None or shift is None:
            return Fit(keep, wide.to(weights.dtype), None)
        return Fit(keep, wide.to(weights.dtype), (shift - wide @ problem.mean).to(bias.dtype))


@dataclass(frozen=True)
class Problem:
    """H in parts: E[x x^T] in fp32, as measured, and what makes it H in fp64."""

    gram: Tensor  # (i, i) fp32, E[x x^T]
    mean: Tensor  # (i,) fp64, m
    centred: bool  # whether H is of x - m
    damping: Tensor  # () fp64, what the diagonal gets

    @staticmethod
    def of(inputs: Mapping[type[InputStatistic], Tensor], centred: bool, damping: float) -> Problem:
        """H of x - E[x] if `centred`, else of x, with damping * mean(diag) for its diagonal. ValueError where that mean
        is not above 0."""
        gram, mean = inputs[Gram], inputs[Mean].double()
        diagonal = gram.diagonal().double()
        size = (diagonal - mean.square() if centred else diagonal).mean()
        if not size > 0:
            raise ValueError(
                f"all inputs are 0{' or never change' * centred} on the calibration samples; give other samples "
                "(data.calibration), or take another gate (taylor, magnitude)"
            )
        return Problem(gram, mean, centred, damping * size)

    def whole(self) -> Tensor:
        """(i, i) fp64 H."""
        found = self.gram.to(torch.float64, copy=True)
        if self.centred:
            found.addr_(self.mean, self.mean, alpha=-1.0)
        found.diagonal().add_(self.damping)
        return found


STRIP = 512  # rows of a matrix with as many rows as columns that are worked on at a time


def strips(size: int) -> list[slice]:
    """Slices of at most STRIP rows, which cover `size` rows in order."""
    return [slice(start, min(start + STRIP, size)) for start in range(0, size, STRIP)]


TINY = 1e-300  # of an output that is 0
CHUNK = 64  # removals between two updates of whole matrices


def removals_(
    weights: Tensor,  # (o, i) fp64, W; becomes V
    inverse: Tensor,  # (i, i) fp64, H^-1; used up
    features: int,  # inputs of a unit
    number: int,  # of units to remove
) -> tuple[Tensor, Tensor]:
    """(number,) units in the order in which they go, and (number,) what the going of each costs."""
    order, costs = (_one_by_one if features == 1 else partial(_as_groups, features))(weights, inverse, number)
    return torch.tensor(order, dtype=torch.int64), torch.tensor(costs, dtype=torch.float64)


def _as_groups(features: int, weights: Tensor, inverse: Tensor, number: int) -> tuple[list[int], list[float]]:
    """As the formulas say."""
    alive, order, costs = list(range(weights.shape[1] // features)), list[int](), list[float]()
    for _ in range(number):
        each = {u: _group_cost(weights, inverse, u, features) for u in alive}
        unit = min(alive, key=lambda u: each[u])
        own = slice(unit * features, (unit + 1) * features)
        taken = solve(inverse[own, own], inverse[own])  # A_uu^-1 A_u:
        weights -= weights[:, own] @ taken
        inverse -= inverse[:, own] @ taken
        alive.remove(unit)
        order.append(unit)
        costs.append(each[unit])
    weights.unflatten(1, (-1, features))[:, order] = 0.0  # which it is but for rounding
    return order, costs


def _group_cost(weights: Tensor, inverse: Tensor, unit: int, features: int) -> float:
    own = slice(unit * features, (unit + 1) * features)
    mine = weights[:, own]
    return float((solve(inverse[own, own], mine.T).T * mine).sum())


def _one_by_one(weights: Tensor, inverse: Tensor, number: int) -> tuple[list[int], list[float]]:
    """The same for units of one input: CHUNK removals at a time are kept as columns L and U, so that A - L L^T and
    W - U L^T are what A and W have become.

    With r^2 = A_uu of now, a removal adds l = (A_:u - L L_u) / r to L and v = (W_:u - U L_u) / r to U. By it the
    squares of W's columns lose 2 l (W^T v - L U^T v) - l^2 |v|^2, and A's diagonal loses l^2. In the end of a chunk A
    and W become what they are now, in place and without the units that are gone.
    """
    size = len(inverse)
    left = torch.arange(size, device=inverse.device)
    now = weights  # (o, n) of the units that are left, in the memory of `weights`
    order, costs = list[int](), list[float]()
    while len(order) < number:
        width = min(CHUNK, number - len(order))
        factor, taken = inverse.new_zeros(len(left), width), inverse.new_zeros(len(now), width)  # L, U
        squares, diagonal = column_squares(now), inverse.diagonal().clone()
        gone = torch.zeros(len(left), dtype=torch.bool, device=inverse.device)
        for t in range(width):
            each = (squares.clamp(min=0.0) / diagonal).masked_fill(gone, torch.inf)
            unit = int(each.argmin())
            root, before = diagonal[unit].sqrt(), factor[unit, :t].clone()
            column = (inverse[:, unit] - factor[:, :t] @ before) / root
            mine = (now[:, unit] - taken[:, :t] @ before) / root
            along = mine @ now - factor[:, :t] @ (mine @ taken[:, :t])
            squares = squares - 2.0 * along * column + mine.square().sum() * column.square()
            diagonal = diagonal - column.square()
            factor[:, t], taken[:, t], gone[unit] = column, mine, True
            order.append(int(left[unit]))
            costs.append(float(each[unit]))
        stay = (~gone).nonzero().squeeze(1)
        factor, left = factor[stay], left[stay]
        for rows in strips(len(stay)):
            inverse[rows, : len(stay)] = inverse[stay[rows]][:, stay]
            inverse[rows, : len(stay)].sub_(factor[rows] @ factor.T)
        for rows in strips(len(now)):
            now[rows, : len(stay)] = now[rows][:, stay]
            now[rows, : len(stay)].sub_(taken[rows] @ factor.T)
        inverse, now = inverse[: len(stay), : len(stay)], now[:, : len(stay)]
    for rows in strips(len(weights)):
        fitted = now[rows].clone()
        weights[rows] = 0.0
        weights[rows.start : rows.stop, left] = fitted
    return order, costs


def column_squares(matrix: Tensor) -> Tensor:
    """(n,) the sums of squares of an (o, n) matrix's columns."""
    found = matrix.new_zeros(matrix.shape[1])
    for rows in strips(len(matrix)):
        found += matrix[rows].square().sum(0)
    return found
