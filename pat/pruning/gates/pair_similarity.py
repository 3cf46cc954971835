"""Pair similarity: removes layers that, paired with a neighbour, hardly change what passes through them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pat.pruning.gates import Evidence
from pat.pruning.gates.similarity import Similarity


@dataclass(frozen=True)
class PairSimilarity(Similarity):
    """S_i <- decay S_i + (1 - decay) mean of d_{i-1} and d_i, d_i = mean over tokens of 1 - cos(input of layer i,
    output of layer i + 1); the first and the last layer have one pair. For `layers` only, of three or more.

    A layer that undoes part of what its neighbour does looks important by itself, and is not. Source: the distance over
    several layers of Gromov et al. 2024, arXiv:2403.17887, over two and for each layer.
    """

    name: str = "pair_similarity"

    needs: ClassVar[Evidence] = "similarity_of_pairs"
    fewest: ClassVar[int] = 3  # two layers have one pair, and so one score
