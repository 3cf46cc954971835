"""Positive symmetric matrices by their Cholesky factors, in the memory that is there.

# H (d, d) positive and symmetric, R (d, d) its upper factor, R^T R = H
"""

from __future__ import annotations

import torch
from torch import Tensor

from pat.common.typed import untyped


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
    return torch.cholesky_inverse(factor.T, out=factor.T)


def solved_(
    factor: Tensor,  # R
    right: Tensor,  # (o, d)
) -> Tensor:
    """(o, d) right H^-1, in `right`."""
    _solve_triangular_(factor, right, upper=True)
    return _solve_triangular_(factor.T, right, upper=False)


def _solve_triangular_(factor: Tensor, right: Tensor, upper: bool) -> Tensor:
    return untyped(torch).linalg.solve_triangular(factor, right, upper=upper, left=False, out=right)
