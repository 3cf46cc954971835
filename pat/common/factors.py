"""Positive symmetric matrices by their Cholesky factors, in the memory that is there.

# H (d, d) positive and symmetric, R (d, d) its upper factor, R^T R = H
"""

from __future__ import annotations

import torch
from torch import Tensor

from pat.common.typed import untyped

STRIP = 256  # rows


def cholesky_(matrix: Tensor) -> Tensor:
    """(d, d) R, in place of H. RuntimeError where H is not positive."""
    columns = matrix.T  # as LAPACK stores a matrix; of another order torch makes a copy
    info = torch.empty((), dtype=torch.int32, device=matrix.device)
    untyped(torch).linalg.cholesky_ex(columns, out=(columns, info))
    if int(info):
        raise RuntimeError(
            f"its matrix is not positive-definite (the leading minor of order {int(info)} is not positive): raise "
            "damping, or give more samples (num_samples)"
        )
    return matrix


def inverted_(factor: Tensor) -> Tensor:
    """(d, d) H^-1, in place of R."""
    if factor.device.type == "cpu":
        return torch.cholesky_inverse(factor.T, out=factor.T)
    return inverted_by_strips_(factor)  # torch's own would make a copy there


def inverted_by_strips_(factor: Tensor, width: int = STRIP) -> Tensor:
    """(d, d) H^-1 = R^-1 R^-T, in place of R, beside a few of its strips (w, d): first L^-1 of the lower L = R^T, from
    the first rows on, then (L^-1)^T L^-1, of which the first rows need no row above them."""
    lower, size = factor.T, len(factor)
    strips = [slice(start, min(start + width, size)) for start in range(0, size, width)]
    for strip in strips:
        above, block = slice(0, strip.start), lower[strip, strip]
        lower[strip, strip.stop :] = 0.0
        eye = torch.eye(len(block), dtype=factor.dtype, device=factor.device)
        inverse = untyped(torch).linalg.solve_triangular(block, eye, upper=False)
        lower[strip, above] = inverse.neg() @ (lower[strip, above] @ lower[above, above])
        lower[strip, strip] = inverse
    for strip in strips:
        left = slice(0, strip.stop)
        lower[strip, left] = lower[strip.start :, strip].T @ lower[strip.start :, left]
        block = lower[strip, strip]  # whose two halves some processors round differently
        block.copy_(block.tril() + block.tril(-1).T)
        lower[: strip.start, strip] = lower[strip, : strip.start].T
    return factor


def solved_(
    factor: Tensor,  # R
    right: Tensor,  # (o, d)
) -> Tensor:
    """(o, d) right H^-1, in `right`."""
    _solve_triangular_(factor, right, upper=True)
    return _solve_triangular_(factor.T, right, upper=False)


def _solve_triangular_(factor: Tensor, right: Tensor, upper: bool) -> Tensor:
    return untyped(torch).linalg.solve_triangular(factor, right, upper=upper, left=False, out=right)
