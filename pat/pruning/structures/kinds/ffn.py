"""FFN neurons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pat.models.anatomy import Anatomy, Mlp
from pat.pruning.structures.sites import Site, inner_site, of_kind


@dataclass(frozen=True)
class Ffn:
    """A neuron: its row of the up (and gate) projection with the bias, and its column of the down projection.

    Source: CoFi's intermediate dimensions, Xia et al. 2022, arXiv:2204.00408.
    """

    name: str = "ffn"

    pooled: ClassVar[bool] = False

    def sites(self, anatomy: Anatomy) -> list[Site]:
        """One per MLP."""
        return [inner_site(self.name, i, j, mlp) for i, j, mlp in of_kind(anatomy, Mlp)]
