"""ALPS: the sparse matrix whose outputs come closest to the dense one's; survivors take over from what goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pat.common.factors import cholesky_, inverted_, solved_
from pat.pruning.calibration.statistics import NOTHING_GOES_IN, Gram, InputStatistic
from pat.pruning.criteria import Calibrated, choice_bytes

FIRST_PENALTY = 0.1  # rho, with inputs scaled to a mean square of 1
PATIENCE = 2  # iterations between two looks at how much the mask still moves
GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))  # (share of the mask that has changed, factor of rho)
SETTLED = 1e-3  # share of the mask below which it no longer moves,
LOOKS = 2  # at so many looks in a row


@dataclass(frozen=True)
class Alps(Calibrated):
    """min over sparse V of ||(W - V) X||^2, X the inputs on calibration samples, by ADMM, then conjugate gradients.

    With H = X X^T / N + damping * mean(diag) I and D = diag(H)^(1/2), in the scaled weights W D and D^-1 H D^-1:

        B = (W H - U + rho V) (H + rho I)^-1      the dense answer, pulled towards the sparse one
        V = keep(B + U / rho)                     the highest squares of weights that live, to the target
        U = U + rho (B - V)

    rho grows while the mask still moves; once it has settled the survivors are fitted by preconditioned conjugate
    gradients on the mask. Any granularity and scope. With `gradient_samples` the rows of W are first multiplied by how
    much the loss feels their output (`weights.allocation`), and divided afterwards. Source: Meng et al. 2024,
    arXiv:2406.07831.
    """

    name: str = "alps"
    damping: float = 0.01  # added to the Gram matrix's diagonal, as a share of its mean; raise it for few samples
    iterations: int = 60  # most iterations of ADMM
    refinements: int = 5  # steps of conjugate gradients that fit what stays

    statistics: ClassVar[tuple[type[InputStatistic], ...]] = (Gram,)

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        super().__post_init__()
        if self.damping <= 0:
            raise ValueError(f"alps: damping is {self.damping}, but must be above 0.")
        if self.iterations < 1 or self.refinements < 0:
            raise ValueError("alps needs iterations of at least 1 and refinements of at least 0.")

    def prepare(self, inputs: Mapping[type[InputStatistic], Tensor]) -> Problem:
        """Of all matrices with these inputs; the Gram matrix becomes the scaled one. ValueError where it is 0."""
        gram = damped_(inputs[Gram], self.damping)
        scale = gram.diagonal().sqrt()
        gram.div_(scale[:, None]).div_(scale)
        return Problem(gram, scale, Resolvent(gram))

    def cut(self, weights: Tensor, prepared: Problem, choose: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Flags and fitted weights. RuntimeError where the Gram matrix is not positive."""
        dense = weights.contiguous().mul_(prepared.scale)
        sparse, keep = self._admm(dense, prepared, choose)
        return keep, fitted(dense, prepared.gram, keep, sparse, self.refinements).div_(prepared.scale)

    def cut_bytes(self, outputs: int, inputs: int) -> int:
        """ADMM's five matrices with three sets of flags while it chooses, beside a factor or an inverse; by the inverse
        a sixth matrix while it multiplies."""
        number, square = outputs * inputs, inputs * inputs
        choosing = 4 * square + 4 * 5 * number + 3 * number + choice_bytes(outputs, inputs)
        if not inverts(outputs, inputs):
            return choosing
        return max(choosing, 4 * square + 4 * 6 * number + 2 * number)

    def cut_flops(self, outputs: int, inputs: int) -> float:
        """A product with H, 2 o i^2 operations, for W H, the residual, each step of conjugate gradients and each
        iteration of ADMM; for each rho a factor, i^3 / 3, or an inverse, i^3 with the factor."""
        products = 2.0 * outputs * inputs**2 * (2 + self.refinements + self.iterations)
        rhos = 1 + self.iterations // PATIENCE
        return products + rhos * inputs**3 / (1 if inverts(outputs, inputs) else 3)

    def _admm(self, dense: Tensor, problem: Problem, choose: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """(V, its flags). Holds five matrices of the size of `dense`, with it, and what `solve` and `choose` take."""
        target = dense @ problem.gram
        sparse, dual, near, rho = dense.clone(), torch.zeros_like(dense), torch.empty_like(dense), FIRST_PENALTY
        keep = before = torch.ones_like(dense, dtype=torch.bool)
        settled = 0
        for iteration in range(self.iterations):
            torch.mul(sparse, rho, out=near)
            near = problem.solve(near.add_(target).sub_(dual), rho)
            pulled = _pulled(near, dual, rho, out=sparse)
            keep = choose(pulled.square_().mul_(dense != 0))
            sparse = _pulled(near, dual, rho, out=sparse).mul_(keep)
            dual.add_(near.sub_(sparse).mul_(rho))
            if iteration % PATIENCE == PATIENCE - 1:
                moved = int(torch.count_nonzero(keep ^ before)) / max(int(torch.count_nonzero(keep)), 1)
                settled = settled + 1 if moved <= SETTLED else 0
                if settled == LOOKS:
                    break
                rho *= next(factor for share, factor in GROWTH if moved >= share)
                before = keep
        return sparse, keep


@dataclass(frozen=True)
class Problem:
    """What the matrices share that read the same inputs."""

    gram: Tensor  # (i, i) H, damped, with a unit diagonal
    scale: Tensor  # (i,) D
    solve: Resolvent


def _pulled(near: Tensor, dual: Tensor, rho: float, out: Tensor) -> Tensor:
    """B + U / rho."""
    return torch.div(dual, rho, out=out).add_(near)


class Resolvent:
    """(R (o, i), rho) -> R (H + rho I)^-1, by a Cholesky factor for each rho; R is used up.

    A matrix with as many outputs as inputs, or more, is multiplied by the inverse: that takes more operations than two
    triangular solves, but less time. RuntimeError where H + rho I is not positive.
    """

    def __init__(self, gram: Tensor) -> None:
        self.gram = gram
        self.known: tuple[float, bool] | None = None  # rho, whether `held` is the inverse or the factor
        self.held: Tensor | None = None

    def __call__(self, right: Tensor, rho: float) -> Tensor:
        """Of matrices with the same inputs, one after the other: what is held is for the last rho and shape."""
        inverse = inverts(*right.shape)
        if self.held is None or self.known != (rho, inverse):
            self.held = None  # before the next is made
            self.held = cholesky_(added_(self.gram.clone(), rho))
            if inverse:
                inverted_(self.held)
            self.known = rho, inverse
        return right @ self.held if inverse else solved_(self.held, right)


def inverts(outputs: int, inputs: int) -> bool:
    """Whether a matrix of that shape is worth the inverse of its Gram matrix."""
    return outputs >= inputs


def damped_(gram: Tensor, damping: float) -> Tensor:
    """(d, d) with damping * mean(diag) on the diagonal, in place. ValueError where nothing goes in at all."""
    mean = gram.diagonal().mean()
    if not mean > 0:
        raise ValueError(NOTHING_GOES_IN)
    return added_(gram, damping * mean)


def added_(gram: Tensor, value: Tensor | float) -> Tensor:
    """(d, d) with a value added to the diagonal, in place."""
    gram.diagonal().add_(value)
    return gram


def fitted(
    dense: Tensor,  # (o, i)
    gram: Tensor,  # (i, i), with a unit diagonal
    keep: Tensor,  # (o, i) bool
    start: Tensor,  # (o, i)
    iterations: int,
) -> Tensor:
    """Argmin over V on the mask of tr (W - V) H (W - V)^T, row by row at once, by conjugate gradients from `start`.

    In `start`; `dense` is used up.
    """
    found = start.mul_(keep)
    residual = torch.mm(dense.sub_(found), gram).mul_(keep)
    direction, moved, term = residual.clone(), torch.empty_like(residual), dense
    size = torch.square(residual, out=term).sum(1, keepdim=True)
    for _ in range(iterations):
        torch.mm(direction, gram, out=moved).mul_(keep)
        curvature = torch.mul(direction, moved, out=term).sum(1, keepdim=True)
        step = torch.where(curvature > 0, size / curvature, 0.0)
        found.add_(torch.mul(step, direction, out=term))
        residual.sub_(moved.mul_(step))
        new = torch.square(residual, out=term).sum(1, keepdim=True)
        direction.mul_(torch.where(size > 0, new / size, 0.0)).add_(residual)
        size = new
    return found
