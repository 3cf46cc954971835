"""ALPS: the sparse matrix whose outputs come closest to the dense one's; survivors take over from what goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pat.common.typed import cholesky, eigh
from pat.pruning.calibration.statistics import Gram, InputStatistic
from pat.pruning.criteria import Calibrated

FIRST_PENALTY = 0.1  # rho, with inputs scaled to a mean square of 1
PATIENCE = 2  # iterations between two looks at how much the mask still moves
GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))  # (share of the mask that has changed, factor of rho)
SETTLED = 1e-3  # share of the mask below which it no longer moves,
WIDE = 4096  # inputs of a matrix above which it has no eigenvectors taken
LOOKS = 2  # at so many looks in a row


@dataclass(frozen=True)
class Alps(Calibrated):
    """min over sparse V of ||(W - V) X||^2, X the inputs on calibration samples, by ADMM, then conjugate gradients.

    With H = X X^T / N + damping * mean(diag) I and D = diag(H)^(1/2), in the scaled weights W D and D^-1 H D^-1:

        B = (W H - U + rho V) (H + rho I)^-1      the dense answer, pulled towards the sparse one
        V = keep(B + U / rho)                     the highest squares of weights that live, to the target
        U = U + rho (B - V)

    rho grows while the mask still moves; once it has settled the survivors are fitted by preconditioned conjugate
    gradients on the mask. Any granularity and scope. Source: Meng et al. 2024, arXiv:2406.07831.
    """

    name: str = "alps"
    damping: float = 0.01  # added to the Gram matrix's diagonal, as a share of its mean; raise it for few samples
    iterations: int = 60  # of ADMM, at most
    refinements: int = 10  # steps of conjugate gradients that fit what stays

    statistics: ClassVar[tuple[type[InputStatistic], ...]] = (Gram,)

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        super().__post_init__()
        if self.damping <= 0:
            raise ValueError(f"alps: damping is {self.damping}, but must be above 0.")
        if self.iterations < 1 or self.refinements < 0:
            raise ValueError("alps needs iterations of at least 1 and refinements of at least 0.")

    def cut(
        self, weights: Tensor, inputs: Mapping[type[InputStatistic], Tensor], choose: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Flags and fitted weights. ValueError where the Gram matrix is not positive."""
        gram = damped(inputs[Gram], self.damping)
        scale = gram.diagonal().sqrt()
        scaled, dense = gram.div_(scale[:, None]).div_(scale), weights * scale
        sparse, keep = self._admm(dense, scaled, choose)
        return keep, fitted(dense, scaled, keep, sparse, self.refinements) / scale

    def cut_bytes(self, outputs: int, inputs: int) -> int:
        """Weights, target, sparse answer, dual and what they are made of; the Gram matrix, damped, scaled, inverted."""
        return 4 * (8 * outputs * inputs + 4 * inputs * inputs)

    def _admm(self, dense: Tensor, gram: Tensor, choose: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        solve = resolvent(gram)
        target, alive = dense @ gram, (dense != 0).to(dense.dtype)
        sparse, dual, rho = dense.clone(), torch.zeros_like(dense), FIRST_PENALTY
        keep = before = torch.ones_like(dense, dtype=torch.bool)
        settled = 0
        for iteration in range(self.iterations):
            near = solve(target + rho * sparse - dual, rho)
            pulled = near + dual / rho
            keep = choose(pulled.square() * alive)
            sparse = pulled * keep
            dual = dual + rho * (near - sparse)
            if iteration % PATIENCE == PATIENCE - 1:
                moved = float((keep ^ before).sum()) / max(int(keep.sum()), 1)
                settled = settled + 1 if moved <= SETTLED else 0
                if settled == LOOKS:
                    break
                rho *= next(factor for share, factor in GROWTH if moved >= share)
                before = keep
        return sparse, keep


def resolvent(gram: Tensor) -> Callable[[Tensor, float], Tensor]:
    """(R (o, d), rho) -> R (H + rho I)^-1 for the (d, d) Gram matrix H, any number of times.

    Up to WIDE inputs by H's eigenvectors, once for all rho; above, where these take longer than all the rest, by an
    inverse that is made anew when rho changes. RuntimeError where H + rho I is not positive.
    """
    if len(gram) <= WIDE:
        values, vectors = eigh(gram)
        return lambda right, rho: (right @ vectors) / (values + rho) @ vectors.T
    known: dict[float, Tensor] = {}

    def solve(right: Tensor, rho: float) -> Tensor:
        if rho not in known:
            known.clear()
            known[rho] = torch.cholesky_inverse(cholesky(added(gram, rho)))
        return right @ known[rho]

    return solve


def damped(gram: Tensor, damping: float) -> Tensor:
    """(d, d) with damping * mean(diag) on the diagonal. ValueError where nothing goes in at all."""
    mean = gram.diagonal().mean()
    if not mean > 0:
        raise ValueError("all inputs are 0 on the calibration samples")
    return added(gram, damping * mean)


def added(gram: Tensor, value: Tensor | float) -> Tensor:
    """(d, d) with a value added to the diagonal."""
    copy = gram.clone()
    copy.diagonal().add_(value)
    return copy


def fitted(
    dense: Tensor,  # (o, i)
    gram: Tensor,  # (i, i), with a unit diagonal
    keep: Tensor,  # (o, i) bool
    start: Tensor,  # (o, i)
    iterations: int,
) -> Tensor:
    """Argmin over V on the mask of tr (W - V) H (W - V)^T, row by row at once, by conjugate gradients from `start`."""
    mask = keep.to(dense.dtype)
    found = start * mask
    residual = ((dense - found) @ gram) * mask
    direction, size = residual, residual.square().sum(1, keepdim=True)
    for _ in range(iterations):
        moved = (direction @ gram) * mask
        curvature = (direction * moved).sum(1, keepdim=True)
        step = torch.where(curvature > 0, size / curvature, 0.0)
        found = found + step * direction
        residual = residual - step * moved
        new = residual.square().sum(1, keepdim=True)
        direction = residual + torch.where(size > 0, new / size, 0.0) * direction
        size = new
    return found
