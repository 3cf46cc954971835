"""Which numbers of units may be left: what the kernels, the serving side and the stock model classes can use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import lcm

from pat.models import families
from pat.models.anatomy import Anatomy, Attention
from pat.pruning.structures.sites import Site

WORDS = {
    "ffn": "neurons",
    "layers": "layers",
    "attention_layers": "attention sublayers",
    "mlp_layers": "MLP sublayers",
    "kv_groups": "KV groups",
}


@dataclass(frozen=True)
class Limits:
    """What a width must satisfy."""

    multiple_of: int | None = None  # of an MLP; None: 64 where the dense width is a multiple of 64, else 1
    tensor_parallel: int = 1  # ranks that the serving side splits heads, KV heads and neurons over
    stock: bool = True  # stock `from_pretrained` must load the result

    def __post_init__(self) -> None:
        for name in ("multiple_of", "tensor_parallel"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"budget.{name} is {value}, but must be at least 1.")

    def refusal(self, anatomy: Anatomy, site: Site, count: int) -> str | None:
        """Why `count` units may not be left at a site inside a sublayer; None: they may."""
        assert site.sublayer is not None
        sublayer = anatomy.layers[site.layer].sublayers[site.sublayer]
        if not isinstance(sublayer, Attention):
            step = lcm(self.multiple(sublayer.num_units), self.tensor_parallel)
            return None if count % step == 0 else f"{count} neurons are not a multiple of {step}"
        ranks, heads = self.tensor_parallel, count * sublayer.group
        if heads % ranks or (count % ranks and ranks % count):
            return f"{heads} heads with {count} KV heads cannot be split over tensor_parallel={ranks} ranks"
        if self.stock:
            units = [
                [count if isinstance(x, Attention) else x.num_units for x in layer.sublayers]
                for layer in anatomy.layers
            ]
            try:
                families.shrink(anatomy.config, anatomy, range(len(anatomy.layers)), units)
            except ValueError as error:
                return str(error).rstrip(".")
        return None

    def multiple(self, width: int) -> int:
        """The effective multiple_of for an MLP of this width."""
        return self.multiple_of or (64 if width % 64 == 0 else 1)


@dataclass(frozen=True)
class Group:
    """Sites that are narrowed together: all keep the same number of units or, if pooled, a number of the sites
    stays."""

    structure: str
    sites: tuple[Site, ...]
    pooled: bool
    counts: tuple[int, ...]  # allowed counts, ascending; the last is the dense one

    @property
    def full(self) -> int:
        """The dense count: the units of each site or, if pooled, the sites."""
        return len(self.sites) if self.pooled else self.sites[0].num_units


def groups(anatomy: Anatomy, sites: Sequence[Site], limits: Limits, per_layer: bool) -> list[Group]:
    """The groups of all structures. ValueError where nothing is allowed, or layers that must be equal are not."""
    made: list[Group] = []
    allowed: dict[tuple[str, int], tuple[int, ...]] = {}
    for structure, own in by_structure(sites).items():
        if not own[0].features:
            if limits.stock and own[0].sublayer is not None:
                raise ValueError(
                    f"{structure} leaves layers without one of their parts, which no stock class has: "
                    f"{families.OWN_LOADER}, or take layers."
                )
            if own[0].sublayer is None and len(own) > 1:  # where a layer depends on its position, that is said now
                families.drop_layers(anatomy.config, anatomy, range(1, len(anatomy.layers)))
            made.append(Group(structure, tuple(own), True, tuple(range(1, len(own) + 1))))
            continue
        sizes = sorted({site.num_units for site in own})
        if len(sizes) > 1 and not per_layer:
            raise ValueError(
                f"The layers have {', '.join(map(str, sizes))} {WORDS.get(structure, structure)}: one width for all "
                "cannot be chosen; set budget.per_layer=true and budget.hf_compatible=false, and load the exported "
                "model with pat.export.load."
            )
        for site in own:
            key = structure, site.num_units
            if key not in allowed:
                allowed[key] = _allowed(anatomy, site, limits)
        narrowed_alike = [[site] for site in own] if per_layer else [own]
        made += [Group(structure, tuple(part), False, allowed[structure, part[0].num_units]) for part in narrowed_alike]
    return made


def by_structure(sites: Sequence[Site]) -> Mapping[str, list[Site]]:
    """The sites of every structure, in their order."""
    by_name: dict[str, list[Site]] = {}
    for site in sites:
        by_name.setdefault(site.structure, []).append(site)
    return by_name


def _allowed(anatomy: Anatomy, site: Site, limits: Limits) -> tuple[int, ...]:
    """The counts that are not refused. ValueError, with the reason of the largest, where all are."""
    refused = {n: limits.refusal(anatomy, site, n) for n in range(1, site.num_units + 1)}
    allowed = tuple(n for n, reason in refused.items() if reason is None)
    if not allowed or allowed == (site.num_units,):
        reason = refused[max(1, site.num_units - 1)] or "there is only one"
        raise ValueError(f"No number of {site.structure} below {site.num_units} may be left: {reason}.")
    return allowed
