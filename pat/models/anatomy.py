"""Where the heads, neurons and layers of a model are: what a file in pat/models/families describes.

    Anatomy -> Layer -> Attention | Mlp -> Projection, PostNorm

Names and shapes only: it holds for a model on the meta device and for one that ZeRO 3 has partitioned.

# H hidden size, h query heads, k KV heads (groups), d head dimension, n neurons
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from pat.common.parameters import logical_shape


@dataclass(frozen=True)
class Projection:
    """A linear map of a module, or the part of a fused one that begins at output `first_output`."""

    module: str
    weight: str  # parameter
    bias: str | None  # parameter
    out_dim: int  # dimension of the stored weight that holds the outputs: 0 for nn.Linear, 1 for Conv1D
    in_dim: int
    num_outputs: int
    num_inputs: int
    first_output: int = 0


@dataclass(frozen=True)
class PostNorm:
    """A norm between a sublayer's last projection and the residual: x / rms(x) * (origin + weight).

    It cancels any factor on the whole output of the projection, so a gate on the sublayer belongs behind it.
    """

    module: str
    weight: str  # parameter, (H,)
    origin: float = 0.0  # 1 where the forward multiplies by 1 + weight


@dataclass(frozen=True)
class Attention:
    """An attention sublayer; its unit is a KV head with its h / k query heads."""

    name: str  # module
    inputs: tuple[Projection, ...]  # query, key, value: H -> h d, k d, k d; or one that has all three, head by head
    output: Projection  # h d -> H
    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None = None  # positions that are seen and cached; None: all
    cached: bool = False  # keys and values are kept while generating
    extra: tuple[str, ...] = ()  # modules that go with the whole sublayer, such as the norms before and after it
    post_norm: PostNorm | None = None  # None: the last projection's output is added to the residual
    positions: int = 0  # relative positions whose embeddings go through query or key and meet each key or query

    @property
    def group(self) -> int:
        """Query heads of a KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def num_units(self) -> int:
        """k: a unit is a KV head with its query heads."""
        return self.num_kv_heads

    @property
    def producers(self) -> tuple[tuple[Projection, int], ...]:
        """(projection, outputs per unit): what computes the units."""
        return tuple((each, each.num_outputs // self.num_kv_heads) for each in self.inputs)

    @property
    def consumer(self) -> tuple[Projection, int]:
        """(projection, inputs per unit): what reads the units."""
        return self.output, self.group * self.head_dim


@dataclass(frozen=True)
class Mlp:
    """An MLP sublayer, plain or gated; its unit is a neuron."""

    name: str  # module, or the path that its modules share
    inputs: tuple[Projection, ...]  # H -> n: (up,) or (gate, up)
    output: Projection  # n -> H
    extra: tuple[str, ...] = ()  # modules that go with the whole sublayer
    post_norm: PostNorm | None = None  # None: the last projection's output is added to the residual

    @property
    def num_units(self) -> int:
        """n: the neurons, which are the inputs of the output projection."""
        return self.output.num_inputs

    @property
    def producers(self) -> tuple[tuple[Projection, int], ...]:
        """(projection, outputs per unit)."""
        return tuple((projection, 1) for projection in self.inputs)

    @property
    def consumer(self) -> tuple[Projection, int]:
        """(projection, inputs per unit)."""
        return self.output, 1


Sublayer = Attention | Mlp


@dataclass(frozen=True)
class Layer:
    """A residual block of a stack of equal ones."""

    stack: str  # path of the module list
    position: int  # in the stack
    sublayers: tuple[Sublayer, ...]  # in the order of the forward

    @property
    def name(self) -> str:
        """The path of its module, as `model.layers.3`."""
        return f"{self.stack}.{self.position}"


@dataclass(frozen=True)
class Dense:
    """A linear map outside the layers, for the count of FLOPs."""

    name: str
    num_inputs: int
    num_outputs: int
    once: bool  # per sequence (a pooler), not per token


@dataclass(frozen=True)
class Anatomy:
    """What can be pruned of a model: its layers with their sublayers, and the shapes of all parameters."""

    model_type: str
    pre_norm: bool  # h + f(norm(h)); False: norm(h + f(h))
    layers: tuple[Layer, ...]  # of every stack
    dense: tuple[Dense, ...]
    shapes: Mapping[str, tuple[int, ...]]  # every parameter, tied ones once
    config: Any  # the Hugging Face config

    def under(self, modules: Sequence[str]) -> tuple[str, ...]:
        """The parameters of these modules."""
        names = {name for module in modules for name in self._inside.get(module, ())}
        return tuple(sorted(names, key=self._order.__getitem__))

    @cached_property
    def _inside(self) -> Mapping[str, Sequence[str]]:
        """Every module's parameters."""
        inside: dict[str, list[str]] = {}
        for name in self.shapes:
            parts = name.split(".")
            for end in range(1, len(parts)):
                inside.setdefault(".".join(parts[:end]), []).append(name)
        return inside

    @cached_property
    def _order(self) -> Mapping[str, int]:
        return {name: i for i, name in enumerate(self.shapes)}

    def numel(self, names: Sequence[str]) -> int:
        """Elements of these parameters."""
        return sum(math.prod(self.shapes[name]) for name in names)

    def sublayer_parameters(self, sublayer: Sublayer) -> tuple[str, ...]:
        """The parameters that go with a whole sublayer."""
        maps = [projection.module for projection, _ in (*sublayer.producers, sublayer.consumer)]
        return self.under(list(dict.fromkeys([*maps, *sublayer.extra])))

    @property
    def sublayers(self) -> Iterator[tuple[int, int, Sublayer]]:
        """(index of the layer, index in it, sublayer)."""
        for i, layer in enumerate(self.layers):
            for j, sublayer in enumerate(layer.sublayers):
                yield i, j, sublayer


def projection(
    model: nn.Module,
    name: str,  # nn.Linear or transformers' Conv1D
    first_output: int = 0,
    num_outputs: int | None = None,  # all
) -> Projection:
    """The linear map of a module, or a part of its outputs."""
    module = model.get_submodule(name)
    out_dim, in_dim = (1, 0) if type(module).__name__ == "Conv1D" else (0, 1)
    shape = logical_shape(module.weight)
    bias = f"{name}.bias" if getattr(module, "bias", None) is not None else None
    outputs = shape[out_dim] if num_outputs is None else num_outputs
    return Projection(name, f"{name}.weight", bias, out_dim, in_dim, outputs, shape[in_dim], first_output)


def base_prefix(model: Any) -> str:
    """What the base model's names begin with: "model." in a LlamaForCausalLM, "" in a LlamaModel."""
    return "" if model.base_model is model else f"{model.base_model_prefix}."


def describe(
    model: Any,
    pre_norm: bool,
    layers: Sequence[Layer],
    once: Callable[[str], bool] = lambda name: False,  # whether a linear map outside the layers runs once a sequence
) -> Anatomy:
    """The anatomy of a model whose layers are known. ValueError where layers share their weights."""
    shapes = {name: logical_shape(p) for name, p in model.named_parameters()}
    for layer in layers:
        for sublayer in layer.sublayers:
            for each, _ in (*sublayer.producers, sublayer.consumer):
                if each.weight not in shapes:
                    raise ValueError(
                        f"{each.weight} of {type(model).__name__} is another layer's weight too: pat prunes structures "
                        "only where every layer has weights of its own."
                    )
    inside = tuple(f"{stack}." for stack in {layer.stack for layer in layers})
    dense = []
    for name, module in model.named_modules():
        if (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D") and not name.startswith(inside):
            each = projection(model, name)
            dense.append(Dense(name, each.num_inputs, each.num_outputs, once(name)))
    return Anatomy(model.config.model_type, pre_norm, tuple(layers), tuple(dense), shapes, model.config)
