"""What a pruned model costs: parameters, FLOPs, bytes. The one definition for budgets, penalties and reports.

Every cost is, with z = 1 for what stays (or the probability that it does) and n units that are left,

    q = base + sum over layers i of z_i * (fixed_i + sum over sublayers j of z_ij * (fixed_ij + unit_ij * n_ij))

so a removed layer takes its neurons with it, and for independent gates q of the expected z and n is the expected q.

# s sequence length, H hidden size, h query heads, d head dimension
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pat.models.anatomy import Anatomy, Attention
from pat.pruning.structures.sites import Part, Site, inner_site

Number = Any  # int, or a 0-dim fp32 tensor where gates are probabilities
_Each = tuple[int, int]  # of a sublayer: (fixed, per unit)


@dataclass(frozen=True)
class Widths:
    """How much of a model is left."""

    layers: tuple[Number, ...]  # z_i
    sublayers: tuple[tuple[Number, ...], ...]  # z_ij
    units: tuple[tuple[Number, ...], ...]  # n_ij: neurons, KV heads


@dataclass(frozen=True)
class Cost:
    """The coefficients of q."""

    base: int
    layers: tuple[int, ...]
    sublayers: tuple[tuple[_Each, ...], ...]  # of every layer

    def total(self, widths: Widths) -> Number:
        """q: an int, or a differentiable tensor."""
        return self.base + sum(self.layer(i, widths) for i in range(len(self.layers)))

    def layer(self, i: int, widths: Widths) -> Number:
        """The part of layer i."""
        sublayers = zip(self.sublayers[i], widths.sublayers[i], widths.units[i], strict=True)
        return widths.layers[i] * (self.layers[i] + sum(z * (fixed + unit * n) for (fixed, unit), z, n in sublayers))

    def scaled(self, factor: int) -> Cost:
        """The cost `factor` * q, such as bytes where q counts parameters."""
        sublayers = tuple(tuple((f * factor, u * factor) for f, u in row) for row in self.sublayers)
        return Cost(self.base * factor, tuple(fixed * factor for fixed in self.layers), sublayers)

    def plus(self, other: Cost) -> Cost:
        """The sum of two costs of one model."""
        rows = zip(self.sublayers, other.sublayers, strict=True)
        return Cost(
            self.base + other.base,
            tuple(a + b for a, b in zip(self.layers, other.layers, strict=True)),
            tuple(tuple((a + c, b + d) for (a, b), (c, d) in zip(x, y, strict=True)) for x, y in rows),
        )

    def per_unit(self, site: Site, widths: Widths) -> int:
        """What one unit of a site costs while everything else is as in `widths`."""
        if site.sublayer is None:
            return self.layer(site.layer, widths)
        fixed, unit = self.sublayers[site.layer][site.sublayer]
        return unit if site.features else fixed + unit * widths.units[site.layer][site.sublayer]


def dense_widths(anatomy: Anatomy) -> Widths:
    """The widths of the dense model."""
    rows = [layer.sublayers for layer in anatomy.layers]
    return Widths(
        (1,) * len(rows), tuple((1,) * len(row) for row in rows), tuple(tuple(x.num_units for x in row) for row in rows)
    )


def widths(
    anatomy: Anatomy,
    sites: Sequence[Site],
    values: Mapping[str, Tensor],  # per site (num_units,): keep flags (bool), or probabilities that a unit is open
) -> Widths:
    """What is left under keep flags (ints), or the expectation under independent gates (tensors, differentiable)."""
    dense = dense_widths(anatomy)
    layers, sublayers, units = list(dense.layers), list(map(list, dense.sublayers)), list(map(list, dense.units))
    for site in sites:
        value = values[site.name]
        count = value.sum() if value.is_floating_point() else int(value.sum())
        if site.sublayer is None:
            layers[site.layer] = count
        else:
            (units if site.features else sublayers)[site.layer][site.sublayer] = count
    return Widths(tuple(layers), tuple(map(tuple, sublayers)), tuple(map(tuple, units)))


def parameters(anatomy: Anatomy) -> Cost:
    """Parameters of the whole model, embeddings and heads included, tied ones once."""
    layers: list[int] = []
    sublayers: list[tuple[_Each, ...]] = []
    inside = 0
    for i, layer in enumerate(anatomy.layers):
        row: list[_Each] = []
        own = anatomy.numel(anatomy.under([layer.name]))
        inside += own
        for j, sublayer in enumerate(layer.sublayers):
            unit = sum(_numel(anatomy, part) for part in inner_site("", i, j, sublayer).parts)
            size = anatomy.numel(anatomy.sublayer_parameters(sublayer))
            row.append((size - unit * sublayer.num_units, unit))
            own -= size
        layers.append(own)
        sublayers.append(tuple(row))
    return Cost(anatomy.numel(list(anatomy.shapes)) - inside, tuple(layers), tuple(sublayers))


def _numel(anatomy: Anatomy, part: Part) -> int:
    """Elements of a parameter that one unit owns."""
    shape = anatomy.shapes[part.parameter]
    return math.prod(shape) // shape[part.dim] * part.per_unit


def flops(anatomy: Anatomy, seq_len: int) -> Cost:
    """FLOPs of the forward of one sequence of s tokens: matrix products only, 2 per multiply-add.

    A projection: 2 s inputs outputs; attention: 4 s^2 h d, the full s x s scores and values whatever the mask or the
    window; p relative positions (DeBERTa's): 2 p (H + s) h d. Norms, activations, softmax, rotary embeddings and biases
    do not count (torch's FlopCounterMode agrees).
    """
    sublayers: list[tuple[_Each, ...]] = []
    for layer in anatomy.layers:
        row: list[_Each] = []
        for sublayer in layer.sublayers:
            reader, features = sublayer.consumer
            unit = sum(2 * seq_len * each.num_inputs * n for each, n in sublayer.producers)
            unit += 2 * seq_len * features * reader.num_outputs
            if isinstance(sublayer, Attention):
                unit += 4 * seq_len**2 * features
                unit += 2 * sublayer.positions * (reader.num_outputs + seq_len) * features
            row.append((0, unit))
        sublayers.append(tuple(row))
    base = sum(2 * (1 if x.once else seq_len) * x.num_inputs * x.num_outputs for x in anatomy.dense)
    return Cost(base, (0,) * len(sublayers), tuple(sublayers))


def cache(anatomy: Anatomy, context: int, batch: int, value_bytes: int) -> Cost:
    """Bytes of the KV cache: 2 d min(context, window) batch value_bytes per KV head; 0 for an encoder."""
    rows: list[tuple[_Each, ...]] = []
    for layer in anatomy.layers:
        row: list[_Each] = []
        for sublayer in layer.sublayers:
            unit = 0
            if isinstance(sublayer, Attention) and sublayer.cached:
                seen = min(context, sublayer.window or context)
                unit = 2 * sublayer.head_dim * seen * batch * value_bytes
            row.append((0, unit))
        rows.append(tuple(row))
    return Cost(0, (0,) * len(rows), tuple(rows))


def memory(anatomy: Anatomy, context: int, batch: int, value_bytes: int) -> Cost:
    """Bytes of the parameters and of the KV cache of `batch` sequences of `context` tokens."""
    return parameters(anatomy).scaled(value_bytes).plus(cache(anatomy, context, batch, value_bytes))
