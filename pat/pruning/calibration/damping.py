"""What makes a Gram matrix of few samples one that can be inverted."""

from __future__ import annotations

from torch import Tensor


def damped_(gram: Tensor, damping: float) -> Tensor:
    """(d, d) with damping * mean(diag) on the diagonal, in place. ValueError where nothing goes in at all."""
    mean = gram.diagonal().mean()
    if not mean > 0:
        raise ValueError("all inputs are 0 on the calibration samples")
    return added_(gram, damping * mean)


def added_(gram: Tensor, value: Tensor | float) -> Tensor:
    """(d, d) with a value added to the diagonal, in place."""
    gram.diagonal().add_(value)
    return gram
