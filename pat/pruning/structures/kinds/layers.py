"""Whole layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pat.models.anatomy import Anatomy
from pat.pruning.structures.sites import Site, whole


@dataclass(frozen=True)
class Layers:
    """A residual block, dropped by the export: output = input + z * (block(input) - input), z = 0 or 1 in the end.

    Source: ShortGPT, Men et al. 2024, arXiv:2403.03853.
    """

    name: str = "layers"

    pooled: ClassVar[bool] = True

    def sites(self, anatomy: Anatomy) -> list[Site]:
        """One per layer, with one unit."""
        return [
            Site(f"{self.name}:{layer.name}", self.name, i, None, 1, whole(anatomy, anatomy.under([layer.name])),
                 layer.name, 0, ())
            for i, layer in enumerate(anatomy.layers)
        ]  # fmt: skip
