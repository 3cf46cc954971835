"""KV groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pat.models.anatomy import Anatomy, Attention
from pat.pruning.structures.sites import Site, inner_site, of_kind


@dataclass(frozen=True)
class KvGroups:
    """A KV head with its h / k query heads, and their columns of the output projection; a head where h = k.

    Source: the groups of grouped-query attention, Ainslie et al. 2023, arXiv:2305.13245.
    """

    name: str = "kv_groups"

    pooled: ClassVar[bool] = False

    def sites(self, anatomy: Anatomy) -> list[Site]:
        """One per attention."""
        return [inner_site(self.name, i, j, attention) for i, j, attention in of_kind(anatomy, Attention)]
