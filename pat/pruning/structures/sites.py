"""Sites: the units of one structure at one place of a model, and the parts of the parameters that each unit owns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from pat.models.anatomy import Anatomy, Attention, Projection, Sublayer


@dataclass(frozen=True)
class Part:
    """Unit u owns [start + u * per_unit, start + (u + 1) * per_unit) of a dimension of a parameter."""

    parameter: str
    dim: int
    start: int
    per_unit: int
    origin: float = 0.0  # the forward multiplies by origin + parameter, and a gate multiplies that


@dataclass(frozen=True)
class Site:
    """The units of one structure in one layer. A unit's gate z multiplies what `gated` says.

    features > 0: every unit has that many inputs of the module `consumer`, and z multiplies them (a forward pre-hook).
    features = 0: the site has one unit and is ranked over the layers; z multiplies the output of `consumer`, which is
    added to the residual, its bias included (a forward hook), or, where sublayer is None, what the layer changes:
    output = input + z * (layer(input) - input).
    """

    name: str
    structure: str
    layer: int  # index in the anatomy's layers
    sublayer: int | None  # index in the layer's sublayers; None: the whole layer
    num_units: int
    parts: tuple[Part, ...]  # all that goes with a unit
    consumer: str  # module
    features: int
    gated: tuple[Part, ...]  # the parts whose weights z multiplies: where the export folds it; () for a layer


class Structure(Protocol):
    """A kind of unit."""

    pooled: ClassVar[bool]  # ranked over the layers: a site has one unit, which is a whole layer or sublayer

    @property
    def name(self) -> str:
        """Its key in the registry."""
        ...

    def sites(self, anatomy: Anatomy) -> list[Site]:
        """Where it is. ValueError where the model has none."""
        ...


def find_sites(anatomy: Anatomy, structures: Sequence[Structure]) -> list[Site]:
    """The sites of several structures. ValueError where two of them own the same units, or one is not in the model."""
    names = [structure.name for structure in structures]
    if {"heads", "kv_groups"} <= set(names):
        raise ValueError("heads and kv_groups are gates on the same weights: choose one of them.")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"The structure {name} is there {names.count(name)} times: name it once.")
    return [site for structure in structures for site in structure.sites(anatomy)]


def inner_site(structure: str, layer: int, index: int, sublayer: Sublayer) -> Site:
    """The units inside a sublayer: neurons, heads, KV groups."""
    reader, features = sublayer.consumer
    read = Part(reader.weight, reader.in_dim, 0, features)
    parts = [each for made, outputs in sublayer.producers for each in _outputs(made, outputs)]
    return Site(
        f"{structure}:{sublayer.name}", structure, layer, index, sublayer.num_units,
        (*parts, read), reader.module, features, (read,),
    )  # fmt: skip


def sublayer_site(structure: str, layer: int, index: int, sublayer: Sublayer, anatomy: Anatomy) -> Site:
    """A whole sublayer as one unit, gated where it joins the residual: at its last projection's output, or a norm's."""
    reader, norm = sublayer.output, sublayer.post_norm
    module, gated = reader.module, _outputs(reader, reader.num_outputs)
    if norm is not None:
        module, gated = norm.module, (Part(norm.weight, 0, 0, anatomy.shapes[norm.weight][0], norm.origin),)
    parts = whole(anatomy, anatomy.sublayer_parameters(sublayer))
    return Site(f"{structure}:{sublayer.name}", structure, layer, index, 1, parts, module, 0, gated)


def whole(anatomy: Anatomy, names: Sequence[str]) -> tuple[Part, ...]:
    """These parameters, as parts of one unit."""
    return tuple(Part(name, 0, 0, anatomy.shapes[name][0]) for name in names)


def _outputs(made: Projection, per_unit: int) -> tuple[Part, ...]:
    """The parts of a weight and its bias that make a unit's outputs."""
    weights = Part(made.weight, made.out_dim, made.first_output, per_unit)
    return (weights,) if made.bias is None else (weights, Part(made.bias, 0, made.first_output, per_unit))


def of_kind(anatomy: Anatomy, kind: type) -> Iterator[tuple[int, int, Any]]:
    """(layer, index in it, sublayer) of the sublayers of a kind. ValueError where there is none."""
    sublayers = [(i, j, sublayer) for i, j, sublayer in anatomy.sublayers if isinstance(sublayer, kind)]
    if not sublayers:
        word = "attention" if kind is Attention else "MLP"
        raise ValueError(f"A {anatomy.model_type} has no {word} sublayers: choose another structure.")
    yield from sublayers
