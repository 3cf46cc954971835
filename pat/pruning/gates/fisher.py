"""Fisher: units whose gates have a small mean squared gradient go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pat.pruning.gates import Averaged, Evidence


@dataclass(frozen=True)
class Fisher(Averaged):
    """S <- decay S + (1 - decay) mean over examples b of (dL_b/dz)^2: the diagonal of the empirical Fisher matrix.

    An example is a row of a micro-batch, L_b its own loss. Source: Kwon et al. 2022, arXiv:2204.09656.
    """

    name: str = "fisher"
    decay: float = 0.99  # decay of the running mean, per step; 0: only the current step counts

    needs: ClassVar[Evidence] = "squared_gradients"
