"""Activation norm: units that put out little go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pat.pruning.gates import Averaged, Evidence


@dataclass(frozen=True)
class Activation(Averaged):
    """S <- decay S + (1 - decay) mean over tokens of ||x_u||^2, x_u the unit's output before its gate.

    Source: Muralidharan et al. 2024 (Minitron), arXiv:2407.14679.
    """

    name: str = "activation"

    needs: ClassVar[Evidence] = "activations"
    comparable: ClassVar[bool] = False  # scores of heads and of neurons are not on one scale
