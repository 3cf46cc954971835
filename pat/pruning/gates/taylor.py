"""Taylor: removes units without which the loss would hardly change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pat.pruning.gates import Averaged, Evidence


@dataclass(frozen=True)
class Taylor(Averaged):
    """S <- decay S + (1 - decay) mean over examples b of |dL_b/dz|.

    To first order, how much the loss L_b of an example changes when an open gate closes. An example is a row of a
    micro-batch. Source: Molchanov et al. 2019, arXiv:1906.10771 (there: of mini-batches, in which the gradients of
    examples cancel).
    """

    name: str = "taylor"

    needs: ClassVar[Evidence] = "absolute_gradients"
