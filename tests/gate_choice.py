"""Which units a budget leaves, said naively: every combination of widths is tried, and costs are counted by hand.

Of a Llama without biases, as tests/gate_oracle.py, of which this is a part; nothing of `pat.pruning` is used.

# L layers, H hidden size, K KV groups of g query heads each, d head dimension, n units of a structure in a layer
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

Units = dict[str, Tensor]  # by structure (L, n)


@dataclass(frozen=True)
class Shape:
    """Of the model."""

    vocab: int
    hidden: int
    layers: int
    groups: int  # K
    heads_per_group: int  # g
    head_dim: int
    neurons: int

    def units(self, structure: str) -> int:
        """How many a layer has."""
        return {"ffn": self.neurons, "kv_groups": self.groups, "heads": self.groups}.get(structure, 1)

    def owned(self, structure: str, layer: int, unit: int) -> list[tuple[str, int, int, int]]:
        """(parameter, dimension, start, stop) of all that goes with a unit."""
        at, d, q = f"model.layers.{layer}", self.head_dim, self.head_dim * self.heads_per_group
        if structure == "ffn":
            rows = [(f"{at}.mlp.{name}.weight", 0, unit, unit + 1) for name in ("gate_proj", "up_proj")]
            return [*rows, (f"{at}.mlp.down_proj.weight", 1, unit, unit + 1)]
        if structure in ("kv_groups", "heads"):
            widths = zip("qkv", (q, d, d), strict=True)
            rows = [(f"{at}.self_attn.{x}_proj.weight", 0, unit * w, (unit + 1) * w) for x, w in widths]
            return [*rows, (f"{at}.self_attn.o_proj.weight", 1, unit * q, (unit + 1) * q)]
        attention = [f"self_attn.{x}_proj" for x in "qkvo"] + ["input_layernorm"]
        mlp = [f"mlp.{x}_proj" for x in ("gate", "up", "down")] + ["post_attention_layernorm"]
        names = {"attention_layers": attention, "mlp_layers": mlp, "layers": attention + mlp}[structure]
        return [(f"{at}.{name}.weight", 0, 0, 1 << 30) for name in names]


def choose(
    shape: Shape, budget: Mapping[str, Any], structures: Sequence[str], scores: Units, comparable: bool, due: float
) -> Units:
    """The keep flags under `due` of the budget: every layer keeps as many units, or with `per_layer` all of them
    together keep the best ones; of whole layers the best ones stay."""
    if budget["name"] == "shape":
        counts = {name: units_left(_most(shape, name), kept, due) for name, kept in budget["keep"].items()}
        return {name: _best(scores[name], counts[name]) for name in structures}
    weighed = scores
    if not comparable:  # not in one currency: each structure loses the same share
        weighed = {name: _shares(shape, budget, name, score) for name, score in scores.items()}
    dense = {name: torch.ones_like(score).bool() for name, score in scores.items()}
    limit = cost_limit(cost(shape, budget, dense), budget["sparsity"], due)
    best, found = -math.inf, None
    together = budget.get("per_layer", False)
    most = [scores[name].numel() if together else _most(shape, name) for name in structures]
    for counts in itertools.product(*(range(1, n + 1) for n in most)):
        flags = {name: _best(scores[name], n, together) for name, n in zip(structures, counts, strict=True)}
        value = sum(float(weighed[name][keep].double().sum()) for name, keep in flags.items())
        if cost(shape, budget, flags) <= limit and value > best:
            best, found = value, flags
    assert found is not None, "nothing fits"
    return found


def units_left(full: int, kept: int, due: float) -> int:
    """What is due of the units that go, rounded half up."""
    return full - math.floor(Fraction(repr(due)) * (full - kept) + Fraction(1, 2))


def cost_limit(full: int, sparsity: float, due: float) -> int:
    """Floor((1 - sparsity * due) * full)."""
    return math.floor((1 - Fraction(repr(sparsity)) * Fraction(repr(due))) * full)


def _most(shape: Shape, structure: str) -> int:
    return shape.layers if shape.units(structure) == 1 else shape.units(structure)


def _best(scores: Tensor, count: int, together: bool = False) -> Tensor:
    """The highest of each layer, or of all layers together, as where a layer is one unit; equal ones: the lower
    index."""
    rows = scores.reshape(1, -1) if together or scores.shape[1] == 1 else scores
    order = torch.argsort(rows, dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(rows, dtype=torch.bool).scatter_(1, order, True).view_as(scores)


def _shares(shape: Shape, budget: Mapping[str, Any], structure: str, scores: Tensor) -> Tensor:
    """(the share of its structure's units that a unit beats or equals) * (what the unit costs)."""
    flat = scores.flatten()
    order = sorted(range(len(flat)), key=lambda u: (-float(flat[u]), u))
    shares = torch.empty(len(flat), dtype=torch.float64)
    for place, unit in enumerate(order):
        shares[unit] = (len(flat) - place) / len(flat)
    one = torch.ones_like(scores).bool()
    without = one.clone()
    without.view(-1)[0] = False
    return shares.view_as(scores) * (cost(shape, budget, {structure: one}) - cost(shape, budget, {structure: without}))


def cost(shape: Shape, budget: Mapping[str, Any], keep: Units) -> Any:
    """Parameters, FLOPs of a forward over s tokens, or bytes of weights and KV cache of what is left: an int under
    flags, and a differentiable expectation under probabilities."""
    h, d, q = shape.hidden, shape.head_dim, shape.head_dim * shape.heads_per_group
    parameters, cached = shape.vocab * h + h, 0  # embeddings, tied to the output, and the last norm
    s = budget.get("seq_len", 0)
    flops = 2 * s * h * shape.vocab

    def left(name: str, i: int, full: int) -> Any:
        if name not in keep:
            return full
        flags = keep[name][i]
        return int(flags.sum()) if flags.dtype == torch.bool else flags.sum()

    for i in range(shape.layers):
        layer = left("layers", i, 1)
        attention, mlp = layer * left("attention_layers", i, 1), layer * left("mlp_layers", i, 1)
        groups = left("heads" if "heads" in keep else "kv_groups", i, shape.groups)
        neurons = left("ffn", i, shape.neurons)
        matrices = groups * (2 * h * q + 2 * h * d)
        parameters += attention * (matrices + h) + mlp * (3 * h * neurons + h)
        flops += attention * (2 * s * matrices + 4 * s * s * groups * q) + mlp * (2 * s * 3 * h * neurons)
        cached += attention * 2 * d * groups
    size = budget.get("value_bytes", 2)
    bytes_held = size * (parameters + cached * budget.get("context", 0) * budget.get("batch", 1))
    return {"parameters": parameters, "flops": flops, "memory": bytes_held}[budget["name"]]
