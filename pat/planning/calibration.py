"""Bytes that a calibrated cut takes of a rank for its walk over the layers, besides weights and optimizer.

In the host's memory, the hidden states of the rank's samples. On the device, those of a micro-batch that go into a
layer and come out of it; and the most of what follows. Masks of padded or packed rows, on the host, are not counted.
    measuring   a layer's weights in the forward's dtype, and its statistics, as if no two matrices had the same inputs
    cutting     these statistics, what the method holds for one matrix, and the others of its rank: as if all matrices
                with as many inputs had the same ones; of structures the layer's weights, unless no cut of it follows
    entering    before all this, what stands between the tokens and the first layer, such as embeddings
    going back  before all this, the weights of a layer, or of all that stands outside of them, logits not counted; the
                host has what goes into each layer and out of the last one, for the samples whose gradients are taken
    fitting     the layer's weights and gradients in the forward's dtype, the rank's share of fp32 weights, flags and
                moments, an fp32 gradient and what Adam makes of it; what the backward keeps is not counted
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from pat.common.parameters import DTYPES, logical_numel
from pat.models.experts import expert_of
from pat.planning.memory import FP32
from pat.pruning.calibration.needs import Needs
from pat.pruning.calibration.reconstruction import fit_bytes
from pat.schema import Config
from pat.tasks import base
from pat.zero.layouts.base import CHUNK

CUT = 5  # bytes of a weight and its flag, before its matrix is cut or after


@dataclass(frozen=True)
class Calibration:
    """The most bytes of a rank at any moment of its calibrated cuts."""

    device: int = 0
    host: int = 0


def calibration(config: Config, model: nn.Module, needs: Sequence[Needs], ranks: int, micro: int = 1) -> Calibration:
    """Of the rank with most samples, at `micro` sequences a forward; 0 where nothing is calibrated."""
    found = [_of(config, model, each, ranks, micro) for each in needs]
    return Calibration(max((f.device for f in found), default=0), max((f.host for f in found), default=0))


def _of(config: Config, model: nn.Module, needs: Needs, ranks: int, micro: int) -> Calibration:
    itemsize = DTYPES[config.engine.dtype].itemsize
    numbers = needs.num_samples, gradient_samples(config, needs)
    rows, back_rows = (micro * math.ceil(number / (micro * ranks)) for number in numbers)
    tokens = rows * config.data.max_length
    hidden: int = cast(Any, model).config.hidden_size
    layers: dict[str, dict[str, int]] = {}
    for name, param in model.named_parameters():
        layers.setdefault(layer_of(name), {})[name] = logical_numel(param)
    statistics: dict[str, int] = {}
    pruned: dict[str, dict[str, int]] = {}
    sharing: dict[tuple[str, int], int] = {}  # weights of matrices that may have the same inputs; experts' have not
    for name, (outputs, inputs) in needs.shapes.items():
        own = sum(kind.num_bytes(inputs) for kind in needs.statistics)
        statistics[layer_of(name)] = statistics.get(layer_of(name), 0) + own
        pruned.setdefault(layer_of(name), {})[name] = outputs * inputs
        sharing[_read(name, inputs)] = sharing.get(_read(name, inputs), 0) + outputs * inputs
    largest = max((layers[name] for name in statistics), key=_total)
    weights, measured = itemsize * _total(largest), max(statistics.values())
    last = {layer_of(name): name for name in needs.shapes}
    cutting = max(
        needs.cut_bytes(*shape)
        + (0 if needs.layers else CUT * (sharing[_read(name, shape[1])] - math.prod(shape)))
        + (0 if name == last[layer_of(name)] else needs.layers * weights)
        for name, shape in needs.shapes.items()
    )
    fitting = 0
    if needs.passes:
        fitted = largest if needs.layers else max(pruned.values(), key=_total)
        fitting = weights + fit_bytes(fitted, ranks, itemsize)
    state = hidden * itemsize  # of a token
    batch = micro * config.data.max_length * state * 2
    states = tokens * state * (1 + 2 * needs.follows)  # also what goes into a layer and comes out of it dense
    back_states = back_rows * config.data.max_length * state * (len(layers.keys() - {""}) + 1)
    outside = layers.get("", {})
    prefix = f"{cast(Any, model).base_model_prefix}."
    chunk = FP32 * min(CHUNK, max(outside.values(), default=0)) if itemsize < FP32 else 0  # before it is rounded
    entering = itemsize * sum(size for name, size in outside.items() if name.startswith(prefix)) + chunk
    back = max(weights, itemsize * _total(outside) + chunk) if needs.back else 0
    walking = max(max(1, needs.layers) * weights + measured, measured + cutting, fitting)
    return Calibration(batch + max(entering, back, walking), max(states, back_states))


def gradient_samples(config: Config, needs: Needs) -> int:
    """Through how many samples the loss's gradients go back at most."""
    return needs.gradient_samples(base.build(config.task).fewest_labels(config.data.max_length))


def _total(sizes: Mapping[str, int]) -> int:
    return sum(sizes.values())


def _read(name: str, inputs: int) -> tuple[str, int]:
    """What matrices may have the same inputs: those of a layer with as many. An expert's are its own."""
    return (layer_of(name) if expert_of(name) is None else name), inputs


def layer_of(name: str) -> str:
    """`model.layers.3` of a parameter inside a layer."""
    match = re.match(r"(.*?\.\d+)\.", name)
    return match[1] if match else ""
