"""What is removed, one at a time: weights of each linear map of each layer, units of each site."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pat.common.comm import LOCAL
from pat.common.parameters import is_conv1d
from pat.common.patterns import check, matches
from pat.common.rounding import part_of
from pat.models.experts import are_experts, leaves
from pat.models.families import anatomy
from pat.pruning import registry
from pat.pruning.granularity.weight import Weight
from pat.pruning.scopes.matrix import Matrix
from pat.pruning.structures.sites import Site
from pat.pruning.types import ScoredSegment
from pat.pruning.weights.selection import keep_top

_IN_A_LAYER = re.compile(r"(.*?\.\d+)\.(.+)")  # the first number in a module's name is that of its layer


@dataclass(frozen=True)
class Cell:
    """One removal: `removed` of the `units` (weights, neurons, ...) of `target`, those of the smallest magnitude."""

    target: str  # a parameter, or a site
    layer: str  # module, as model.layers.3
    kind: str  # the same in all layers: mlp.down_proj, ffn, layers
    fraction: float  # asked for; of few units another share may be removed
    removed: int
    units: int

    @property
    def key(self) -> tuple[str, int]:
        """Its key on disk."""
        return self.target, self.removed


@dataclass(frozen=True)
class Grid:
    """All cells of a model, by layer, and what their measurement needs."""

    cells: list[Cell]
    sites: dict[str, Site]
    stacks: tuple[str, ...]  # whose layers the forward runs one after the other; () where that is not known
    note: str | None  # why there are no structures

    @property
    def kinds(self) -> list[str]:
        """In the order of the model."""
        return list(dict.fromkeys(cell.kind for cell in self.cells))

    @property
    def layers(self) -> list[str]:
        """In the order of the model."""
        return list(dict.fromkeys(cell.layer for cell in self.cells))


def grid(model: nn.Module, fractions: Sequence[float], patterns: Sequence[str] = ("*",)) -> Grid:
    """Cells of the kinds that match a pattern (shell style). ValueError where none does, or for a bad fraction.

    Fractions that come to the same number of units share a cell. A whole layer or sublayer has one, of fraction 1.
    """
    for fraction in fractions:
        if not 0 < fraction <= 1:
            raise ValueError(f"A fraction of {fraction:g} cannot be removed: give numbers above 0 and up to 1.")
    fractions = sorted(set(fractions))
    cells = [cell for name, module in model.named_modules() for cell in _of_weights(name, module, fractions)]
    sites, stacks, note = _sites(model)
    for site in sites:
        stack = re.match(r".*?\.\d+(?=\.|$)", site.consumer)
        assert stack, site.consumer
        wanted = fractions if site.features else [1.0]
        counts = _distinct({f: max(1, part_of(site.num_units, f)) for f in wanted}, site.num_units)
        cells += [Cell(site.name, stack[0], site.structure, f, n, site.num_units) for f, n in counts.items()]
    kinds = list(dict.fromkeys(cell.kind for cell in cells))
    if kinds:
        check("--kinds", patterns, kinds, "kind of parameter")
    chosen = [cell for cell in cells if matches(cell.kind, patterns)]
    if not chosen:
        raise ValueError(
            f"No kind of parameter matches {' '.join(patterns)}: the model has {', '.join(kinds) or 'no layers'}."
        )
    order = {layer: i for i, layer in enumerate(dict.fromkeys(cell.layer for cell in cells))}
    return Grid(sorted(chosen, key=lambda cell: order[cell.layer]), {site.name: site for site in sites}, stacks, note)


def _of_weights(name: str, module: nn.Module, fractions: Sequence[float]) -> list[Cell]:
    place, kinds = _IN_A_LAYER.fullmatch(name), dict[str, str]()  # of matrices, by parameter
    if place and (isinstance(module, nn.Linear) or is_conv1d(module)):
        kinds = {"weight": place[2]}
    elif place and are_experts(module):
        kinds = {leaf: f"{place[2]}.{leaf}" for leaf in leaves(module)}
    found: list[Cell] = []
    for leaf, kind in kinds.items():
        assert place
        shape = tuple(module.get_parameter(leaf).shape)
        units = math.prod(shape)
        counts = _distinct({f: Weight().pruned_units({name: shape}, f, Matrix()) for f in fractions}, units)
        found += [Cell(f"{name}.{leaf}", place[1], kind, f, n, units) for f, n in counts.items()]
    return found


def _distinct(counts: Mapping[float, int], units: int) -> dict[float, int]:
    """{fraction: count} with each count once, under the nearest fraction, and no part of nothing or of everything."""
    nearest = dict[int, float]()
    for fraction, count in counts.items():
        count = count if fraction == 1 else min(count, units - 1)
        if count and (count not in nearest or abs(fraction - count / units) < abs(nearest[count] - count / units)):
            nearest[count] = fraction
    return {fraction: count for count, fraction in nearest.items()}


def _sites(model: nn.Module) -> tuple[list[Site], tuple[str, ...], str | None]:
    """Sites of every structure that the model has, and its stacks. A KV group with one head is a head."""
    try:
        model_anatomy = anatomy(model)
    except ValueError as error:
        return [], (), str(error)
    sites: dict[str, list[Site]] = {}
    for name in registry.names("structure"):
        try:
            sites[name] = registry.build("structure", name).sites(model_anatomy)
        except ValueError:  # heads that share a KV head, or no such sublayer
            continue
    if "heads" in sites:
        sites.pop("kv_groups", None)
    inner_first = sorted(sites.values(), key=lambda of_one: not of_one[0].features)
    # DeBERTa's convolution comes behind the first layer, and is no part of it: it would be applied again.
    in_a_row = not getattr(model.config, "conv_kernel_size", 0)
    stacks = tuple(dict.fromkeys(layer.stack for layer in model_anatomy.layers)) if in_a_row else ()
    return [site for of_one in inner_first for site in of_one], stacks, None


def keep_largest(scores: Tensor, removed: int) -> Tensor:
    """Bool, shaped as the scores: all but the `removed` lowest, by the exact selection that training uses."""
    flat = scores.detach().reshape(-1).float().contiguous()
    keep = torch.empty(flat.numel(), dtype=torch.uint8, device=flat.device)
    keep_top([ScoredSegment("scores", tuple(flat.shape), 0, flat, keep)], flat.numel() - removed, LOCAL)
    return keep.bool().view(scores.shape)


def unit_magnitude(site: Site, parameters: Mapping[str, Tensor]) -> Tensor:
    """(units,) fp32: sum w^2 / n over the n weights that a unit owns, as `gate.name=magnitude` ranks them."""
    total, count = torch.zeros(site.num_units, dtype=torch.float64), 0
    for part in site.parts:
        moved = parameters[part.parameter].detach().movedim(part.dim, 0)
        own = moved[part.start : part.start + site.num_units * part.per_unit]
        squares = own.float().square().reshape(len(own), -1).sum(1, dtype=torch.float64).cpu()
        total += squares.view(site.num_units, part.per_unit).sum(1)
        count += own[: part.per_unit].numel()
    return (total / count).float()
