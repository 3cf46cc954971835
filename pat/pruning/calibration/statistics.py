"""Sums over tokens of what goes into a linear map.

# N tokens (padding left out), d inputs of the map
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

NOTHING_GOES_IN = (
    "all inputs are 0 on the calibration samples; exclude it (pruners.NAME.exclude), or give other samples "
    "(data.calibration)"
)


class InputStatistic(ABC):
    """A sum over tokens: the walk collects it, adds it up over micro-batches and ranks, and divides by the tokens."""

    @staticmethod
    @abstractmethod
    def of(inputs: Tensor) -> Tensor:
        """The sum over the tokens of (N, d) inputs."""

    @classmethod
    def add(cls, total: Tensor | None, inputs: Tensor) -> Tensor:
        """The total with the sum over (N, d) more, in its memory."""
        value = cls.of(inputs)
        return value if total is None else total.add_(value)

    @classmethod
    def completed(cls, total: Tensor) -> Tensor:
        """The whole sum, where `add` leaves out what follows from the rest; in its memory."""
        return total

    @staticmethod
    def flops(tokens: int, inputs: int) -> float:
        """Floating-point operations of products that the sum takes, in fp32; where there are none, 0."""
        return 0.0

    @staticmethod
    @abstractmethod
    def num_bytes(inputs: int) -> int:
        """Bytes that the sum takes for a map with d inputs."""


class Mean(InputStatistic):
    """sum_n x_n, (d,) fp64."""

    @staticmethod
    def of(inputs: Tensor) -> Tensor:
        """(N, d) -> (d,)."""
        return inputs.double().sum(0)

    @staticmethod
    def num_bytes(inputs: int) -> int:
        """8 d."""
        return 8 * inputs


class SquaredNorm(InputStatistic):
    """sum_n x_n^2, (d,) fp64: of each input channel."""

    @staticmethod
    def of(inputs: Tensor) -> Tensor:
        """(N, d) -> (d,)."""
        return inputs.double().square().sum(0)

    @staticmethod
    def num_bytes(inputs: int) -> int:
        """8 d."""
        return 8 * inputs


class Gram(InputStatistic):
    """sum_n x_n x_n^T, (d, d) fp32: added up on and above the diagonal, in rows of blocks."""

    @staticmethod
    def of(inputs: Tensor) -> Tensor:
        """(N, d) -> (d, d)."""
        return Gram.completed(Gram.add(None, inputs))

    @classmethod
    def add(cls, total: Tensor | None, inputs: Tensor) -> Tensor:
        """Above the diagonal, block by block: half of the work, and no second matrix."""
        wide = inputs.float()
        total = wide.new_zeros(wide.shape[1], wide.shape[1]) if total is None else total
        for rows in _strips(len(total)):
            total[rows, rows.start :].add_(torch.mm(wide[:, rows].T, wide[:, rows.start :]))
        return total

    @classmethod
    def completed(cls, total: Tensor) -> Tensor:
        """Below the diagonal what is above it."""
        for rows in _strips(len(total)):
            total[rows.stop :, rows] = total[rows, rows.stop :].T
        return total

    @staticmethod
    def flops(tokens: int, inputs: int) -> float:
        """About N d^2, half of a product, and the blocks on the diagonal."""
        return sum(2.0 * tokens * (rows.stop - rows.start) * (inputs - rows.start) for rows in _strips(inputs))

    @staticmethod
    def num_bytes(inputs: int) -> int:
        """4 d^2."""
        return 4 * inputs * inputs


NARROW = 256  # columns of a block, at least,
STRIPS = 8  # and rows of blocks, at most


def _strips(size: int) -> list[slice]:
    """Rows that are added at a time."""
    width = max(NARROW, -(-size // STRIPS))
    return [slice(start, min(start + width, size)) for start in range(0, size, width)]


def is_finite(values: Tensor) -> bool:
    """Whether no number is infinite or NaN, without another tensor of their size."""
    return not values.numel() or bool(torch.stack(torch.aminmax(values)).isfinite().all())
