"""Attention heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pat.models.anatomy import Anatomy, Attention
from pat.pruning.structures.sites import Site, inner_site, of_kind


@dataclass(frozen=True)
class Heads:
    """A head with query, key and value of its own, and its columns of the output projection.

    Source: Michel et al. 2019, arXiv:1905.10650.
    """

    name: str = "heads"

    pooled: ClassVar[bool] = False

    def sites(self, anatomy: Anatomy) -> list[Site]:
        """One per attention. ValueError where several heads share a KV head."""
        attentions = list(of_kind(anatomy, Attention))
        for _, _, attention in attentions:
            if attention.group > 1:
                raise ValueError(
                    f"structure heads: {attention.group} heads of this {anatomy.model_type} share a KV head, so that "
                    "one alone cannot go; take kv_groups, a KV head together with its heads."
                )
        return [inner_site(self.name, i, j, attention) for i, j, attention in attentions]
