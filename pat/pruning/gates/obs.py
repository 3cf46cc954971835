"""OBS: removes the units whose work the others can take over, and lets them take it over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pat.common.typed import cholesky_, solve, solve_triangular_
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

    In the end V = W H_:K H_KK^-1, and the bias gets (W - V) E[x] + repair E[e]. Source: Kurtic et al. 2023 (ZipLM),
    arXiv:2302.04089; the bias: An et al. 2023 (FLAP), arXiv:2312.11983; e: ours.
    """

    name: str = "obs"
    damping: float = 0.01  # added to the Gram matrix's diagonal, as a share of its mean; raise it for few samples
    repair: float = 1.0  # share of the pruned layers' error below that is repaired; 0: none, and one forward less

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
        """The weights, in fp64 these and what is missing; in fp64 H^-1, W^T W, STRIP rows of both, and columns."""
        return (4 + 8 * 2) * outputs * inputs + 8 * inputs * (2 * inputs + 2 * min(STRIP, inputs) + 4 * CHUNK)

    def costs(
        self, weights: Tensor, features: int, inputs: Mapping[type[InputStatistic], Tensor], bias: bool
    ) -> Tensor:
        """(u,) what removing each unit costs, given those removed before it, as a share of E||W (x - m)||^2."""
        problem = Problem.of(inputs, bias, self.damping)
        wide, gram = weights.double(), problem.whole()
        size = ((wide @ gram) * wide).sum().clamp(min=TINY)
        order, costs = removals(wide, inverted_(cholesky_(gram)), features, wide.shape[1] // features)
        return torch.zeros_like(costs).scatter_(0, order, costs) / size

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
        wide, shift = weights.to(torch.float64, copy=True), None if bias is None else bias.double()
        factor = cholesky_(problem.whole())
        if gap is not None:
            missing = gap.cross.double()
            if shift is not None:
                missing, shift = missing - torch.outer(gap.mean, problem.mean), shift + self.repair * gap.mean
            wide.add_(solved_(factor, missing.clone()).mul_(self.repair))
            del missing
        units = wide.shape[1] // features
        order, _ = removals(wide, inverted_(factor), features, units - count)
        del factor
        keep = torch.ones(units, dtype=torch.bool)
        keep[order] = False
        fitted = refitted(wide, problem, keep.repeat_interleave(features))
        if bias is None or shift is None:
            return Fit(keep, fitted.to(weights.dtype), None)
        # The bias of W x + b is b + (W - V) m, whatever W has become.
        return Fit(keep, fitted.to(weights.dtype), (shift + (weights.double() - fitted) @ problem.mean).to(bias.dtype))


@dataclass(frozen=True)
class Problem:
    """H in parts: E[x x^T] in fp32, as measured, and what makes it H in fp64."""

    gram: Tensor  # (i, i) fp32, E[x x^T]
    mean: Tensor  # (i,) fp64, m
    centred: bool  # whether H is of x - m
    damping: Tensor  # () fp64, what the diagonal gets

    @staticmethod
    def of(inputs: Mapping[type[InputStatistic], Tensor], centred: bool, damping: float) -> Problem:
        """ValueError where nothing goes in."""
        gram, mean = inputs[Gram], inputs[Mean].double()
        diagonal = gram.diagonal().double()
        size = (diagonal - mean.square() if centred else diagonal).mean()
        if not size > 0:
            raise ValueError("all inputs are 0 on the calibration samples")
        return Problem(gram, mean, centred, damping * size)

    def rows(self, on: Tensor) -> Tensor:
        """(n, i) fp64 of H, for the (n,) indices."""
        found = self.gram[on].double()
        if self.centred:
            found.sub_(torch.outer(self.mean[on], self.mean))
        found[torch.arange(len(on), device=on.device), on] += self.damping
        return found

    def whole(self) -> Tensor:
        """(i, i) fp64 H."""
        found = torch.empty_like(self.gram, dtype=torch.float64)
        for rows in strips(len(found)):
            found[rows] = self.rows(torch.arange(rows.start, rows.stop, device=found.device))
        return found


STRIP = 512  # rows of a matrix with as many rows as columns that are worked on at a time


def strips(size: int) -> list[slice]:
    """Runs of rows."""
    return [slice(start, min(start + STRIP, size)) for start in range(0, size, STRIP)]


def solved_(
    factor: Tensor,  # (i, i) upper R with R^T R = H
    right: Tensor,  # (o, i)
) -> Tensor:
    """(o, i) right H^-1, in `right`."""
    solve_triangular_(factor, right, upper=True)
    return solve_triangular_(factor.T, right, upper=False)


def inverted_(factor: Tensor) -> Tensor:
    """(i, i) H^-1, in the memory of H's upper factor."""
    return torch.cholesky_inverse(factor.T, out=factor.T)


TINY = 1e-300  # of an output that is 0
CHUNK = 64  # removals between two updates of whole matrices


def removals(
    weights: Tensor,  # (o, i) fp64
    inverse: Tensor,  # (i, i) fp64, H^-1; used up
    features: int,  # inputs of a unit
    number: int,  # of units to remove
) -> tuple[Tensor, Tensor]:
    """(number,) units in the order in which they go, and (number,) what the going of each costs."""
    if features == 1:
        return _one_by_one(weights.T @ weights, inverse, number)
    return _as_groups(weights, inverse, features, number)


def _as_groups(weights: Tensor, inverse: Tensor, features: int, number: int) -> tuple[Tensor, Tensor]:
    """As the formulas say."""
    weights = weights.clone()
    units = weights.shape[1] // features
    alive, order, costs = list(range(units)), list[int](), list[float]()
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
    return torch.tensor(order, dtype=torch.int64), torch.tensor(costs, dtype=torch.float64)


def _group_cost(weights: Tensor, inverse: Tensor, unit: int, features: int) -> float:
    own = slice(unit * features, (unit + 1) * features)
    mine = weights[:, own]
    return float((solve(inverse[own, own], mine.T).T * mine).sum())


def _one_by_one(products: Tensor, inverse: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The same for units of one input, from Q = W^T W and A: CHUNK removals at a time are kept as columns.

    With L and U so that A - L L^T and W - U L^T are what A and W have become, and M = W^T U, S = U^T U, a removal reads
    only columns of Q and A: l = (A_:u - L L_u) / r, W^T u' = (Q_:u - M L_u) / r and U^T u' = (M_u - S L_u) / r with
    r^2 = A_uu. Then A - L L^T and Q - M L^T - L M^T + L S L^T are taken, without the units that are gone, in place.
    """
    left = torch.arange(len(inverse), device=inverse.device)
    order, costs = list[int](), list[float]()
    while len(order) < number:
        width = min(CHUNK, number - len(order))
        factor, seen = inverse.new_zeros(len(left), width), inverse.new_zeros(len(left), width)  # L, M
        own = inverse.new_zeros(width, width)  # S
        norms, diagonal = products.diagonal().clone(), inverse.diagonal().clone()
        gone = torch.zeros(len(left), dtype=torch.bool, device=inverse.device)
        for t in range(width):
            each = (norms.clamp(min=0.0) / diagonal).masked_fill(gone, torch.inf)
            unit = int(each.argmin())
            root, before = diagonal[unit].sqrt(), factor[unit, :t].clone()
            column = (inverse[:, unit] - factor[:, :t] @ before) / root
            product = (products[:, unit] - seen[:, :t] @ before) / root
            among = (seen[unit, :t] - own[:t, :t] @ before) / root
            square = norms[unit] / diagonal[unit]
            norms = norms - 2.0 * (product - factor[:, :t] @ among) * column + square * column.square()
            diagonal = diagonal - column.square()
            factor[:, t], seen[:, t], gone[unit] = column, product, True
            own[t, :t], own[:t, t], own[t, t] = among, among, square
            order.append(int(left[unit]))
            costs.append(float(each[unit]))
        stay = (~gone).nonzero().squeeze(1)
        factor, seen, left = factor[stay], seen[stay], left[stay]
        inverse, products = _among_(inverse, stay), _among_(products, stay)
        half = seen - factor @ own / 2.0
        for rows in strips(len(stay)):
            inverse[rows].sub_(factor[rows] @ factor.T)
            products[rows].sub_(half[rows] @ factor.T).sub_(factor[rows] @ half.T)
    return torch.tensor(order, dtype=torch.int64), torch.tensor(costs, dtype=torch.float64)


def _among_(matrix: Tensor, stay: Tensor) -> Tensor:
    """(n, n) the rows and columns of rising indices (n,), moved up and left within the memory of the matrix."""
    for rows in strips(len(stay)):
        matrix[rows, : len(stay)] = matrix[stay[rows]][:, stay]
    return matrix[: len(stay), : len(stay)]


def refitted(weights: Tensor, problem: Problem, keep: Tensor) -> Tensor:
    """(o, i) V = W H_:K H_KK^-1 on the inputs K whose flag, of (i,) bool, is up, and 0 elsewhere."""
    on = keep.nonzero().squeeze(1).to(weights.device)
    within, right = weights.new_empty(len(on), len(on)), weights.new_empty(len(weights), len(on))
    for rows in strips(len(on)):
        part = problem.rows(on[rows])
        within[rows] = part[:, on]
        right[:, rows] = weights @ part.T
    fitted = torch.zeros_like(weights)
    fitted[:, on] = solved_(cholesky_(within), right)
    return fitted
