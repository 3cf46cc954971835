"""Loads an exported model whose layers have widths of their own (`pat_widths`), and every stock folder too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from torch import Tensor, nn

from pat.models import families
from pat.models.anatomy import Anatomy, Attention, Projection, Sublayer

CACHES = ("cache", "past_key_values", "layer_past")  # names of keys and values that are kept


def load(folder: str | Path, **options: Any) -> Any:
    """The model in a folder of `pat export`; options go to from_pretrained. ValueError where no class is named.

    The stock class is built and its layers are narrowed before the weights are read. The result is not servable
    everywhere: other tools build the stock class and refuse the weights.
    """
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    names = getattr(config, "architectures", None) or []
    stock = getattr(transformers, names[0], None) if names else None
    if stock is None:
        raise ValueError(f"{folder}/config.json names no class of transformers under architectures: {names}.")
    if getattr(config, "pat_widths", None) is None:
        return stock.from_pretrained(folder, **options)
    return narrowed(stock).from_pretrained(folder, **options)


def narrowed(stock: type) -> Any:
    """A class of that name whose layers have the widths in config.pat_widths."""

    def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        stock.__init__(self, config, *args, **kwargs)
        anatomy = families.family(config.model_type).anatomy(self)
        for layer, row in zip(anatomy.layers, config.pat_widths, strict=True):
            for sublayer in layer.sublayers:
                _narrow(self, anatomy, sublayer, row[sublayer.name.removeprefix(f"{layer.name}.")])

    return type(stock.__name__, (stock,), {"__init__": build, "__module__": __name__})


def _narrow(model: Any, anatomy: Anatomy, sublayer: Sublayer, count: int) -> None:
    """Give a sublayer `count` units; with 0 it adds nothing to the residual stream."""
    if count == 0:
        return _remove(model, sublayer)
    outputs: dict[str, int] = {}
    for made, per_unit in sublayer.producers:
        outputs[made.module] = outputs.get(made.module, 0) + per_unit * count
    for made, _ in sublayer.producers:
        _resize(model.get_submodule(made.module), made.out_dim, outputs[made.module], bias=True)
    reader, per_unit = sublayer.consumer
    _resize(model.get_submodule(reader.module), reader.in_dim, per_unit * count, bias=False)
    if isinstance(sublayer, Attention):
        families.family(anatomy.model_type).resize(model, sublayer, count)


def _resize(module: Any, dim: int, size: int, bias: bool) -> None:
    """A linear map with `size` entries in one dimension of its weight, and in its bias."""
    shape = list(module.weight.shape)
    shape[dim] = size
    module.weight = nn.Parameter(module.weight.new_empty(shape))
    if bias and module.bias is not None:
        module.bias = nn.Parameter(module.bias.new_empty(size))
    inputs, outputs = (shape[1], shape[0]) if isinstance(module, nn.Linear) else (shape[0], shape[1])
    names = ("in_features", "out_features") if isinstance(module, nn.Linear) else ("nx", "nf")
    setattr(module, names[0], inputs)
    setattr(module, names[1], outputs)


def _remove(model: Any, sublayer: Sublayer) -> None:
    """Put modules without weights in the place of a sublayer; the last projection's weight stays, without elements."""
    reader = sublayer.output
    for made, _ in sublayer.producers:
        model.set_submodule(made.module, NoOutputs())
    model.set_submodule(reader.module, Nothing(model.get_submodule(reader.module).weight, reader))
    for name in sublayer.extra:
        model.set_submodule(name, nn.Identity())
    if isinstance(sublayer, Attention):
        inside = reader.module.removeprefix(f"{sublayer.name}.") if reader.module.startswith(sublayer.name) else None
        old = model.get_submodule(sublayer.name)
        gone = NoAttention(getattr(old, "layer_idx", None), reader.num_outputs if inside else 0)
        if inside:
            gone.add_module(inside, model.get_submodule(reader.module))
        model.set_submodule(sublayer.name, gone)


class NoOutputs(nn.Module):
    """A projection onto no unit."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., H) -> (..., 0)."""
        return x.new_zeros(*x.shape[:-1], 0)


class Nothing(nn.Module):
    """A projection from no unit: zeros."""

    def __init__(self, weight: Tensor, reader: Projection) -> None:
        super().__init__()
        shape = list(weight.shape)
        shape[reader.in_dim] = 0
        self.num_outputs = reader.num_outputs
        self.weight = nn.Parameter(weight.new_empty(shape))

    def forward(self, x: Tensor) -> Tensor:
        """(..., 0) -> (..., H)."""
        return x.new_zeros(*x.shape[:-1], self.num_outputs)


class NoAttention(nn.Module):
    """An attention without heads. It caches one zero per position, because stock code counts positions there."""

    def __init__(self, layer_idx: int | None, num_outputs: int) -> None:
        super().__init__()
        self.layer_idx, self.num_outputs = layer_idx, num_outputs

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """(B, s, H) -> (B, s, num_outputs) zeros."""
        cache = next((kwargs[name] for name in CACHES if kwargs.get(name) is not None), None)
        if cache is not None:
            position = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            cache.update(position, position, self.layer_idx)
        return hidden_states.new_zeros(*hidden_states.shape[:-1], self.num_outputs), None
