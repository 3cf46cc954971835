"""Whole MLP sublayers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pat.models.anatomy import Anatomy, Mlp
from pat.pruning.structures.sites import Site, of_kind, sublayer_site


@dataclass(frozen=True)
class MlpLayers:
    """MLP of a layer as one unit: z multiplies what it adds to the residual, bias included.

    Source: CoFi's mlp layers, Xia et al. 2022, arXiv:2204.00408.
    """

    name: str = "mlp_layers"

    pooled: ClassVar[bool] = True

    def sites(self, anatomy: Anatomy) -> list[Site]:
        """One per MLP, with one unit."""
        return [sublayer_site(self.name, i, j, each, anatomy) for i, j, each in of_kind(anatomy, Mlp)]
