"""Inverses in place."""

from __future__ import annotations

import pytest
import torch

from pat.common.factors import cholesky_, inverted_by_strips_


@pytest.mark.parametrize("size", [1, 5, 12, 31])
def test_an_inverse_by_strips_is_the_inverse_in_the_factors_own_memory(size: int) -> None:
    x = torch.randn(3 * size, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    matrix = x.T @ x
    factor = cholesky_(matrix.clone())
    at = factor.data_ptr()
    found = inverted_by_strips_(factor, width=5)
    assert found.data_ptr() == at and torch.equal(found, found.T)
    torch.testing.assert_close(found, torch.linalg.inv(matrix))
