"""Which part of every parameter a smaller model keeps, under keep flags and gate values: tensor by tensor.

The gates of what stays are folded into the weights that they multiply in the gated forward, so that the smaller model
needs none. With stock=True the result is a stock model or a ValueError. Otherwise it may be one that no stock class
holds, with widths per layer: they are `pat_widths` in its config, which pat.export.load reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pat.models import families
from pat.models.anatomy import Anatomy
from pat.pruning.structures.costs import Widths, widths
from pat.pruning.structures.parts import Factor
from pat.pruning.structures.sites import Site


@dataclass(frozen=True)
class Cut:
    """What is left of one parameter."""

    name: str  # in the smaller model
    selects: Mapping[int, Tensor]  # dimension -> (m,) int64: indices that stay
    factors: Mapping[int, Tensor]  # dimension -> (m,) fp32: gate values of what stays
    origin: float = 0.0  # what they multiply is origin + parameter


@dataclass(frozen=True)
class Narrowing:
    """A smaller model as a function of the larger one's parameters."""

    config: Any  # the Hugging Face config of the smaller model
    widths: Widths
    shapes: Mapping[str, tuple[int, ...]]  # of the smaller model, by new name
    cuts: Mapping[str, Cut | None]  # by old name; None: dropped. What is not here stays as it is

    @property
    def scales(self) -> bool:
        """Whether a gate of what stays is not 1, so that a weight changes."""
        return any(cut is not None and cut.factors for cut in self.cuts.values())

    def rename(self, name: str) -> str | None:
        """The name in the smaller model; None: it is not there."""
        if name in self.cuts:
            cut = self.cuts[name]
            return None if cut is None else cut.name
        return name

    def select(self, name: str, tensor: Tensor) -> Tensor:
        """The elements that stay of a parameter that is not dropped."""
        cut = self.cuts.get(name)
        assert cut is not None or name not in self.cuts, f"{name} is dropped"
        for dim, index in cut.selects.items() if cut is not None else ():
            tensor = tensor.index_select(dim, index.to(tensor.device))
        return tensor

    def cut(self, name: str, tensor: Tensor) -> Tensor:
        """What is left of a parameter that is not dropped; factors are applied in fp32."""
        tensor, cut = self.select(name, tensor), self.cuts.get(name)
        if cut is None:
            return tensor
        dtype = tensor.dtype
        for dim, factor in cut.factors.items():
            shape = [-1 if d == dim else 1 for d in range(tensor.dim())]
            along = factor.to(tensor.device).view(shape)
            tensor = Factor(dim, factor, cut.origin).apply(tensor.float(), along)
        return tensor.to(dtype)


def narrowing(
    config: Any,  # the Hugging Face config of the larger model
    anatomy: Anatomy,
    sites: Sequence[Site],
    keep: Mapping[str, Tensor],  # per site (num_units,) bool
    gates: Mapping[str, Tensor] | None = None,  # per site (num_units,) fp32, what is pruned does not count; None: 1
    stock: bool = True,  # stock from_pretrained must load it; False: it may be one for pat.export.load only
) -> Narrowing:
    """The smaller model. ValueError where it does not exist, or not as a stock model."""
    gates = gates or {site.name: torch.ones(site.num_units) for site in sites}
    left = widths(anatomy, sites, keep)
    _check(sites, keep, gates, left)
    kept = [i for i, z in enumerate(left.layers) if z]
    units = [[z * n for z, n in zip(left.sublayers[i], left.units[i], strict=True)] for i in kept]
    try:
        smaller = families.shrink(config, anatomy, kept, units)
    except ValueError:
        if stock:
            raise
        smaller = _own_config(config, anatomy, kept, units)
    names = _new_names(anatomy, kept)
    flags = {name: [torch.ones(n, dtype=torch.bool) for n in shape] for name, shape in anatomy.shapes.items()}
    factors: dict[tuple[str, int], Tensor] = {}
    origins: dict[str, float] = {}
    for site in sites:
        z = keep[site.name].cpu()
        for part in site.parts:
            flags[part.parameter][part.dim][_range(part, site)] &= z.repeat_interleave(part.per_unit)
        for part in site.gated:
            size = anatomy.shapes[part.parameter][part.dim]
            factor = factors.setdefault((part.parameter, part.dim), torch.ones(size))
            factor[_range(part, site)] *= gates[site.name].float().cpu().repeat_interleave(part.per_unit)
            origins[part.parameter] = part.origin
    markers = _markers(anatomy, left)
    cuts: dict[str, Cut | None] = {}
    for name, dims in flags.items():
        new = names(name)
        if name in markers:  # nothing of the sublayer is left, and a stock class must not take it for a new one
            dims = [torch.ones(len(f), dtype=torch.bool) for f in dims]
            dims[markers[name]][:] = False
        elif any(not f.any() for f in dims):
            new = None
        selects = {d: f.nonzero().flatten() for d, f in enumerate(dims) if not f.all()}
        scaled = {d: factors[name, d][dims[d]] for d in range(len(dims)) if (name, d) in factors}
        scaled = {d: f for d, f in scaled.items() if not bool((f == 1).all())}
        cuts[name] = None if new is None else Cut(new, selects, scaled, origins.get(name, 0.0))
    shapes = {
        cut.name: tuple(len(cut.selects[d]) if d in cut.selects else n for d, n in enumerate(anatomy.shapes[name]))
        for name, cut in cuts.items()
        if cut is not None
    }
    return Narrowing(smaller, left, shapes, cuts)


def _range(part: Any, site: Site) -> slice:
    return slice(part.start, part.start + site.num_units * part.per_unit)


def _check(sites: Sequence[Site], keep: Mapping[str, Tensor], gates: Mapping[str, Tensor], left: Widths) -> None:
    """ValueError for flags and gates that describe no smaller model."""
    for site in sites:
        flags, values = keep[site.name].cpu(), gates[site.name].detach().float().cpu()
        if flags.dtype != torch.bool or flags.shape != (site.num_units,) or values.shape != flags.shape:
            raise ValueError(
                f"{site.name} has {site.num_units} units: it needs as many keep flags (bool) and gates, not "
                f"{tuple(flags.shape)} of {flags.dtype} and {tuple(values.shape)}."
            )
        if not _there(site, left):
            continue
        stay = values[flags]
        if not stay.isfinite().all():
            raise ValueError(f"A gate of {site.name} that stays is not a finite number: there is nothing to fold.")
        if not site.gated and not bool((stay == 1).all()):
            raise ValueError(
                f"The gate of {site.name} is {stay.tolist()[0]:g}: a whole layer can be dropped (0) or kept (1), but "
                "nothing in between can be folded into its weights; export after the hard phase."
            )
        if site.features and not flags.any():
            raise ValueError(f"No unit of {site.name} is left: keep at least 1, or prune the whole sublayer.")


def _there(site: Site, left: Widths) -> bool:
    """Whether the layer and the sublayer that hold the site's units stay."""
    i, j = site.layer, site.sublayer
    return bool(left.layers[i]) and (j is None or site.features == 0 or bool(left.sublayers[i][j]))


def _own_config(config: Any, anatomy: Anatomy, kept: Sequence[int], units: Sequence[Sequence[int]]) -> Any:
    """The config of the layers that stay, with `pat_widths`: the width of every sublayer, by its path in the layer."""
    smaller = families.drop_layers(config, anatomy, kept)
    smaller.pat_widths = []
    for i, row in zip(kept, units, strict=True):
        layer = anatomy.layers[i]
        paths = [sublayer.name.removeprefix(f"{layer.name}.") for sublayer in layer.sublayers]
        smaller.pat_widths.append(dict(zip(paths, row, strict=True)))
    return smaller


def _new_names(anatomy: Anatomy, kept: Sequence[int]) -> Any:
    """The name of a parameter in the smaller model, whose layers are numbered anew; None in a dropped layer."""
    places: dict[str, str | None] = {f"{layer.name}.": None for layer in anatomy.layers}
    count: dict[str, int] = {}
    for i in kept:
        layer = anatomy.layers[i]
        places[f"{layer.name}."] = f"{layer.stack}.{count.get(layer.stack, 0)}."
        count[layer.stack] = count.get(layer.stack, 0) + 1

    def rename(name: str) -> str | None:
        for old, new in places.items():
            if name.startswith(old):
                return None if new is None else new + name.removeprefix(old)
        return name

    return rename


def _markers(anatomy: Anatomy, left: Widths) -> dict[str, int]:
    """Last weights of sublayers that are gone from layers that stay, and the dimension in which they are empty.

    They stay in the file without elements: a stock class then refuses the file instead of drawing new weights.
    """
    return {
        sublayer.output.weight: sublayer.output.in_dim
        for i, j, sublayer in anatomy.sublayers
        if left.layers[i] and not left.sublayers[i][j]
    }
