"""Sums over tokens of what goes into a linear map.

# N tokens (padding left out), d inputs of the map
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class InputStatistic(ABC):
    """A sum over tokens: the walk collects it, adds it up over micro-batches and ranks, and divides by the tokens."""

    @staticmethod
    @abstractmethod
    def of(inputs: Tensor) -> Tensor:
        """The sum over the tokens of (N, d) inputs."""

    @staticmethod
    @abstractmethod
    def num_bytes(inputs: int) -> int:
        """Of the sum for d inputs."""


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
    """sum_n x_n x_n^T, (d, d) fp32."""

    @staticmethod
    def of(inputs: Tensor) -> Tensor:
        """(N, d) -> (d, d)."""
        wide = inputs.float()
        return torch.mm(wide.T, wide)

    @staticmethod
    def num_bytes(inputs: int) -> int:
        """4 d^2."""
        return 4 * inputs * inputs
