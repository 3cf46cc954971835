"""Bytes that a calibrated cut takes on a rank, beside weights and optimizer: of the walk over the layers.

hidden states of the rank's samples, one layer's weights in the forward's dtype, one whole fp32 matrix, the layer's
statistics (as if no two matrices had the same inputs), and what the criterion holds for its largest matrix; or, where
that is more, the layer in fp32 with gradients, flags and moments (what its backward keeps is not counted)
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from pat.common.parameters import DTYPES, logical_numel
from pat.planning.memory import FP32
from pat.pruning.calibration.needs import Needs
from pat.schema import Config

ADAM = 5  # fp32 numbers of a weight while its layer is reconstructed: itself, gradient, flag, two moments


def calibration(config: Config, model: nn.Module, needs: Sequence[Needs], ranks: int) -> int:
    """At most, on a rank that holds most samples; 0 where nothing is calibrated."""
    return max((_of(config, model, each, ranks) for each in needs), default=0)


def _of(config: Config, model: nn.Module, needs: Needs, ranks: int) -> int:
    itemsize = DTYPES[config.engine.dtype].itemsize
    tokens = math.ceil(needs.num_samples / ranks) * config.data.max_length
    hidden: int = cast(Any, model).config.hidden_size
    layers: dict[str, int] = {}
    for name, param in model.named_parameters():
        layers[_layer(name)] = layers.get(_layer(name), 0) + logical_numel(param)
    statistics: dict[str, int] = {}
    for name, (_, inputs) in needs.shapes.items():
        own = sum(kind.num_bytes(inputs) for kind in needs.statistics)
        statistics[_layer(name)] = statistics.get(_layer(name), 0) + own
    largest = max(layers[name] for name in statistics)
    fit = FP32 * ADAM * largest if needs.passes else 0
    copies = 1 + needs.follows  # of a layer: with the weights that it came with
    states = 1 + 2 * needs.follows  # what goes into that copy, and what it gives
    return (
        tokens * hidden * itemsize * states
        + itemsize * largest * copies
        + FP32 * max(map(math.prod, needs.shapes.values()))
        + max(max(statistics.values()) + max(needs.cut_bytes(*shape) for shape in needs.shapes.values()), fit)
    )


def _layer(name: str) -> str:
    """`model.layers.3` of a parameter inside a layer."""
    match = re.match(r"(.*?\.\d+)\.", name)
    return match[1] if match else ""
