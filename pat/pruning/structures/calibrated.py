"""The cut of a calibrated gate: sublayer by sublayer in a walk over the layers, each on the outputs of the pruned
layers below.

# u units of a site, whose consuming matrix has o outputs and i inputs
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pat.models.anatomy import Anatomy, Projection
from pat.pruning.calibration.fitted import FittedWeights
from pat.pruning.calibration.gap import Gap
from pat.pruning.calibration.journal import KEEP, Journal
from pat.pruning.calibration.needs import Needs, is_out_of_memory, too_large
from pat.pruning.calibration.reconstruction import reconstruct
from pat.pruning.calibration.statistics import InputStatistic
from pat.pruning.calibration.walk import Layer, Walk
from pat.pruning.gates import CalibratedGate, GateMethod
from pat.pruning.schedules import Timeline
from pat.pruning.structures.sites import Site


def reader(anatomy: Anatomy, site: Site) -> Projection:
    """The linear map that reads a site's units."""
    assert site.sublayer is not None
    return anatomy.layers[site.layer].sublayers[site.sublayer].consumer[0]


def readers(anatomy: Anatomy, sites: Sequence[Site]) -> list[str]:
    """The matrices that read the units of all sites."""
    return [reader(anatomy, site).weight for site in sites]


def as_map(anatomy: Anatomy, made: Projection) -> tuple[int, ...]:
    """The shape of a linear map's weight with the outputs first, however it is stored."""
    shape = anatomy.shapes[made.weight]
    return shape if made.out_dim == 0 else shape[::-1]


def added_up(anatomy: Anatomy, layer: str) -> dict[str, list[str]]:
    """The matrices of a layer whose outputs are added to the residual, each with those up to it, in the order of the
    forward; none where a norm comes between."""
    (sublayers,) = [each.sublayers for each in anatomy.layers if each.name == layer]
    if not anatomy.pre_norm or any(sublayer.post_norm is not None for sublayer in sublayers):
        return {}
    names = [sublayer.consumer[0].weight for sublayer in sublayers]
    return {name: names[: place + 1] for place, name in enumerate(names)}


def check(name: str, method: CalibratedGate, anatomy: Anatomy, sites: Sequence[Site], line: Timeline) -> None:
    """ValueError where no linear map reads the units, or the schedule does not cut once."""
    gate = f"pruners.{name}.gate={method.name}"
    for site in sites:
        if not site.features:
            raise ValueError(
                f"{gate} fits the matrix that reads the units, and none reads {site.structure}: take ffn, heads or "
                "kv_groups; or, where steps are trained, a gate that ranks whole layers (pair_similarity, taylor)"
            )
    if line.hard_from != line.start:
        raise ValueError(
            f"{gate} cuts once and for good, but pruners.{name}.schedule is soft from step {line.start} to step "
            f"{line.hard_from}: take schedule.name=one_shot with hard_from=null"
        )


def needs(key: str, method: GateMethod, anatomy: Anatomy, sites: Sequence[Site]) -> Needs | None:
    """What has to be measured at the cut; None: the gate looks at no inputs."""
    if not isinstance(method, CalibratedGate):
        return None
    made = [reader(anatomy, site) for site in sorted(sites, key=lambda site: (site.layer, site.sublayer or 0))]
    shapes = {projection.weight: as_map(anatomy, projection) for projection in made}
    return Needs(
        key,
        method.num_samples,
        shapes,
        method.statistics,
        method.cut_bytes,
        method.cut_flops,
        follows=method.follows,
        passes=method.reconstruct,
        layers=1 + method.follows,
    )


@dataclass(frozen=True)
class Cutter:
    """Cuts sites by what goes into the matrices that read their units."""

    method: CalibratedGate
    anatomy: Anatomy
    sites: Sequence[Site]
    weights: FittedWeights
    seed: int

    def costs(self, walk: Walk, journal: Journal) -> dict[str, Tensor]:
        """What each unit is worth, (u,) fp32 by site, in the model as it is. Collective."""
        found: dict[str, Tensor] = {}
        for layer in walk:
            if (known := journal.known(layer)) is not None:
                found |= dict(known)
                continue
            for site in (sites := self._of(layer)):
                made = reader(self.anatomy, site)
                inputs = layer.collect({made.weight: self.method.statistics})[made.weight]
                if site is sites[-1]:
                    layer.let_go()
                weights, bias = self._reader(made)
                work = partial(_costs, self.method, weights, bias is not None, site.features, inputs)
                (found[site.name],) = self._on_one_rank(site, made, work, [(site.num_units,)])
                journal.put(site.name, found[site.name])
            journal.write(layer)
        return found

    def cut(self, walk: Walk, counts: Mapping[str, int], journal: Journal) -> dict[str, Tensor]:
        """Flags (u,) bool by site, `counts` of them up. Writes the fitted weights. Collective."""
        keep: dict[str, Tensor] = {}
        for layer in walk:
            if (known := journal.known(layer)) is None:
                keep |= self._cut_layer(layer, counts, journal)
                journal.write(layer)
                continue
            for name, values in known:
                if name.startswith(KEEP):
                    keep[name.removeprefix(KEEP)] = values.cpu()
                else:
                    self.weights.write(name, values)
        return keep

    def _cut_layer(self, layer: Layer, counts: Mapping[str, int], journal: Journal) -> dict[str, Tensor]:
        """The flags of the layer's sites. Fitted weights are written, and go into the journal. Collective."""
        keep: dict[str, Tensor] = {}
        sites = self._of(layer)
        for site in sites:
            keep[site.name] = self._cut_site(layer, site, counts[site.name], journal, last=site is sites[-1])
            journal.put(KEEP + site.name, keep[site.name])
        if self.method.reconstruct and not all(bool(flags.all()) for flags in keep.values()):
            names = [name for name in self._parameters(sites) if self.weights.can_be_fitted(name)]
            settings = self.method.reconstruct, self.method.reconstruct_lr, self.seed
            fitted = reconstruct(layer, names, *settings, dict(self._stays(site, keep[site.name]) for site in sites))
            for name, values in fitted:
                self.weights.write(name, values)
                journal.put(name, values)
        return keep

    def _cut_site(self, layer: Layer, site: Site, count: int, journal: Journal, last: bool) -> Tensor:
        """The flags of a site. Fits the weights that read its units, and refreshes the layer. Collective."""
        if count == site.num_units:
            return torch.ones(count, dtype=torch.bool)
        made = reader(self.anatomy, site)
        inputs, gap = self._measure(layer, site, made)
        if last:
            layer.let_go()
        weights, bias = self._reader(made)
        work = partial(_cut, self.method, weights, bias, site.features, inputs, gap, count)
        names = [name for name in (made.weight, made.bias) if name is not None]
        shapes = [(site.num_units,), as_map(self.anatomy, made), *(self.anatomy.shapes[n] for n in names[1:])]
        flags, *fitted = self._on_one_rank(site, made, work, shapes)
        fitted[0] = _turned(made, fitted[0])
        for name, values in zip(names, fitted, strict=True):
            self.weights.write(name, values)
            journal.put(name, values)
        if not last or self.method.reconstruct:  # else the walk does
            layer.refresh(layer.parameters if last else names)
        return flags.bool().cpu()

    def _stays(self, site: Site, keep: Tensor) -> tuple[str, Tensor]:
        """The matrix that reads the units, and 1 for its inputs that stay: (1, i), or (i, 1) as it is stored."""
        made = reader(self.anatomy, site)
        inputs = keep.repeat_interleave(site.features).float()
        return made.weight, inputs.unsqueeze(made.out_dim)

    def _parameters(self, sites: Sequence[Site]) -> list[str]:
        """The parameters that compute or read the units of these sites."""
        names: dict[str, None] = {}
        for site in sites:
            assert site.sublayer is not None
            sublayer = self.anatomy.layers[site.layer].sublayers[site.sublayer]
            for made, _ in (*sublayer.producers, sublayer.consumer):
                names |= dict.fromkeys(name for name in (made.weight, made.bias) if name is not None)
        return list(names)

    def _measure(self, layer: Layer, site: Site, made: Projection) -> tuple[Mapping[Any, Tensor], Gap | None]:
        """Statistics of a matrix's inputs, and the gap behind it. Collective."""
        wanted = {made.weight: self.method.statistics}
        if not self.method.follows:
            return layer.collect(wanted)[made.weight], None
        means, gaps = layer.collect_with_gaps(wanted, added_up(self.anatomy, layer.name))
        return means[made.weight], gaps[made.weight]

    def _of(self, layer: Layer) -> list[Site]:
        """The sites of a layer, in the order of the forward."""
        own = [site for site in self.sites if self.anatomy.layers[site.layer].name == layer.name]
        return sorted(own, key=lambda site: site.sublayer or 0)

    def _reader(self, made: Projection) -> tuple[Tensor, Tensor | None]:
        """The fp32 weights (o, i) and bias (o,), whole. Collective."""
        whole = self.weights.whole
        return _turned(made, whole(made.weight)), None if made.bias is None else whole(made.bias)

    def _on_one_rank(
        self, site: Site, made: Projection, work: Callable[[], list[Tensor]], shapes: Sequence[tuple[int, ...]]
    ) -> list[Tensor]:
        """The fp32 tensors of these shapes that `work` gives on one rank, on all. Collective.

        An error on that rank is raised on all, as the others wait for it: ValueError.
        """
        layout, said = self.weights.layout, list[str]()
        world = layout.world
        found: list[Tensor] = []
        owner = site.layer % world.world_size
        if owner == world.rank:
            try:
                found = [each.float().contiguous() for each in work()]
            except (MemoryError, ValueError, RuntimeError) as error:  # torch's of linear algebra are RuntimeErrors
                needed = self.method.cut_bytes(*as_map(self.anatomy, made))
                said.append(
                    too_large(made.weight, self.method.name, needed)
                    if is_out_of_memory(error)
                    else f"{made.weight} cannot be cut by {self.method.name}: {error}"
                )
            else:
                if not all(bool(each.isfinite().all()) for each in found):
                    said.append(
                        f"{made.weight}: {self.method.name} gives weights that are not finite; raise gate.damping, or "
                        "give more samples (gate.num_samples), and take another run.dir"
                    )
        refused = [sentence for each in world.gather(said) for sentence in each]
        if refused:
            raise ValueError(refused[0])
        told = found or [torch.empty(shape, device=layout.device) for shape in shapes]
        return [world.broadcast(owner, each) for each in told]


def _turned(made: Projection, weights: Tensor) -> Tensor:
    """Between the stored orientation and outputs first, either way."""
    return weights if made.out_dim == 0 else weights.T


def _costs(
    method: CalibratedGate, weights: Tensor, bias: bool, features: int, inputs: Mapping[type[InputStatistic], Tensor]
) -> list[Tensor]:
    return [method.costs(weights, features, inputs, bias)]


def _cut(
    method: CalibratedGate,
    weights: Tensor,
    bias: Tensor | None,
    features: int,
    inputs: Mapping[type[InputStatistic], Tensor],
    gap: Gap | None,
    count: int,
) -> list[Tensor]:
    fit = method.cut(weights, bias, features, inputs, gap, count)
    return [fit.keep, fit.weights] + ([] if fit.bias is None else [fit.bias])
