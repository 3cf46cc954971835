"""Similarity: removes layers whose output hardly differs from their input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pat.pruning.gates import Averaged, Evidence


@dataclass(frozen=True)
class Similarity(Averaged):
    """S <- decay S + (1 - decay) mean over tokens of 1 - cos(input, output) of the block. For `layers` only.

    Source: ShortGPT's block influence, Men et al. 2024, arXiv:2403.03853.
    """

    name: str = "similarity"

    needs: ClassVar[Evidence] = "similarity"
    pooled_only: ClassVar[bool] = True
