"""The budget that names what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from pat.common.rounding import part_of
from pat.common.typed import is_mapping
from pat.models.anatomy import Anatomy
from pat.pruning.structures.choose import Choice, choice, keep_counts
from pat.pruning.structures.costs import parameters
from pat.pruning.structures.grid import WORDS, Group, Limits, by_structure, groups
from pat.pruning.structures.sites import Site


@dataclass(frozen=True)
class Shape:
    """The units that are left, {ffn: 768, kv_groups: 2, layers: 24}: of every layer, or, for layers, of the model.

    A number with a point, {ffn: 0.5}, is a share of what is there: the count that the grid has nearest to it.
    Source: the target shapes of Sheared LLaMA, Xia et al. 2023, arXiv:2310.06694.
    """

    name: str = "shape"
    keep: dict[str, int | float] = field(kw_only=True)  # by structure: units that stay in each layer, or a share
    multiple_of: int | None = field(default=None, kw_only=True)  # neuron step; null: 64 if it divides the width, else 1
    tensor_parallel: int = field(default=1, kw_only=True)  # ranks over which serving splits heads and neurons
    hf_compatible: bool = field(default=True, kw_only=True)  # the export must load with stock from_pretrained

    of_weights: ClassVar[bool] = False
    ties_sites: ClassVar[bool] = False  # each site has a constraint of its own
    sparsity: ClassVar[float | None] = None  # a shape is not a fraction

    def __post_init__(self) -> None:
        """Refuse what is not a shape."""
        Limits(self.multiple_of, self.tensor_parallel, self.hf_compatible)
        given: Any = self.keep  # of a shape that no schema has seen
        if not is_mapping(given) or not given:
            raise ValueError("budget.keep is empty: name what is left of every structure, as {ffn: 768}.")
        for structure, count in given.items():
            share = isinstance(count, float) and 0.0 < count < 1.0
            if isinstance(count, bool) or not (share or (isinstance(count, int) and count >= 1)):
                raise ValueError(
                    f"budget.keep.{structure} is {count!r}, but must be a whole number of at least 1, or a share "
                    "between 0.0 and 1.0."
                )

    def check(self, anatomy: Anatomy, sites: Sequence[Site]) -> None:
        """ValueError where the shape is not one of this model."""
        own = by_structure(sites)
        if set(own) != set(self.keep):
            raise ValueError(
                f"budget.keep must name the structures and nothing else: it has {', '.join(self.keep)}, and structures "
                f"are {', '.join(own)}. Give budget.keep={{{', '.join(f'{name}: N' for name in own)}}}."
            )
        for group in self._groups(anatomy, sites):
            count, word = self._left(group), WORDS.get(group.structure, group.structure)
            where = "the model has" if group.pooled else "a layer has"
            if count > group.full:
                raise ValueError(f"budget.keep.{group.structure}={count} is more than the {group.full} {word} {where}.")
            if count not in group.counts:
                limits = Limits(self.multiple_of, self.tensor_parallel, self.hf_compatible)
                raise ValueError(
                    f"budget.keep.{group.structure}: {limits.refusal(anatomy, group.sites[0], count)}; "
                    f"take {_near(group.counts, count)}."
                )

    def choose(
        self,
        anatomy: Anatomy,
        sites: Sequence[Site],
        scores: Mapping[str, Tensor],  # per site (num_units,) fp32, higher = keep
        progress: float = 1.0,  # share of the way from the dense shape to this one
        comparable: bool = True,  # makes no difference: the shape says how much of each structure stays,
        per_cost: bool = False,  # and units that compete cost the same
    ) -> Choice:
        """The keep flags of this shape, or of the narrowest on the way that keeps at least what is due then."""
        self.check(anatomy, sites)
        narrowed, counts = self._groups(anatomy, sites), list[int]()
        for group in narrowed:
            least = group.full - part_of(group.full - self._left(group), progress)
            counts.append(min((n for n in group.counts if n >= least), default=group.full))
        return choice(anatomy, sites, keep_counts(narrowed, counts, scores), parameters(anatomy), "parameters")

    def expected_sparsity(
        self,
        anatomy: Anatomy,
        sites: Sequence[Site],
        open: Mapping[str, Tensor],  # per site (num_units,) fp32: probability that the gate is open
    ) -> Tensor:
        """(K,) the fraction that is closed: of the units of every site, and of all layers where they are units."""
        return torch.stack(
            [1.0 - torch.cat([open[site.name] for site in own]).mean() for own in _narrowed_alike(sites)]
        )

    def target_sparsity(self, anatomy: Anatomy, sites: Sequence[Site]) -> list[float]:
        """(K,) the fraction of the same units that this shape removes."""
        gone = {group.structure: 1.0 - self._left(group) / group.full for group in self._groups(anatomy, sites)}
        return [gone[own[0].structure] for own in _narrowed_alike(sites)]

    def _left(self, group: Group) -> int:
        """The units, or layers, that stay; of two counts equally near to a share, the larger."""
        wanted = self.keep[group.structure]
        if isinstance(wanted, int):
            return wanted
        return min(group.counts, key=lambda count: (abs(count - wanted * group.full), -count))

    def _groups(self, anatomy: Anatomy, sites: Sequence[Site]) -> list[Group]:
        return groups(
            anatomy, sites, Limits(self.multiple_of, self.tensor_parallel, self.hf_compatible), per_layer=False
        )


def _narrowed_alike(sites: Sequence[Site]) -> list[list[Site]]:
    """The units among which a shape chooses: those of one site, or all layers."""
    alike: list[list[Site]] = []
    for own in by_structure(sites).values():
        alike += [[site] for site in own] if own[0].features else [own]
    return alike


def _near(counts: Sequence[int], count: int) -> str:
    """The neighbours of a count on the grid."""
    below, above = [n for n in counts if n < count][-1:], [n for n in counts if n > count][:1]
    return " or ".join(map(str, below + above))
