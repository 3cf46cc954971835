"""Bytes that a calibrated cut takes on a rank, beside weights and optimizer: of the walk over the layers.

hidden states of the rank's samples, one layer's weights in the forward's dtype, one whole fp32 matrix, the layer's
statistics (as if no two matrices had the same inputs), and what the criterion holds for its largest matrix
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from torch import nn

from pat.common.parameters import DTYPES, logical_numel
from pat.planning.memory import FP32
from pat.pruning.criteria import Calibrated
from pat.pruning.weights.pruner import WeightPruner
from pat.schema import Config


def calibration(config: Config, model: nn.Module, pruners: Sequence[WeightPruner], ranks: int) -> int:
    """At most, on a rank that holds most samples; 0 where nothing is calibrated."""
    return max(
        (_of(config, model, each, ranks) for each in pruners if isinstance(each.criterion, Calibrated)), default=0
    )


def _of(config: Config, model: nn.Module, pruner: WeightPruner, ranks: int) -> int:
    criterion = pruner.criterion
    samples = math.ceil(criterion.num_samples / ranks)
    itemsize = DTYPES[config.engine.dtype].itemsize
    layers: dict[str, list[tuple[int, ...]]] = {}
    for name, shape in pruner.shapes.items():
        layers.setdefault(_layer(name), []).append(shape)
    hidden = max((shape[1] for shapes in layers.values() for shape in shapes[:1]), default=0)
    whole: dict[str, int] = {}
    for name, param in model.named_parameters():
        if _layer(name) in layers:
            whole[_layer(name)] = whole.get(_layer(name), 0) + logical_numel(param)
    statistics = max(
        sum(kind.num_bytes(shape[1]) for shape in shapes for kind in criterion.statistics) for shapes in layers.values()
    )
    shapes = list(pruner.shapes.values())
    return (
        samples * config.data.max_length * hidden * itemsize
        + itemsize * max(whole.values())
        + FP32 * max(map(math.prod, shapes))
        + statistics
        + max(criterion.cut_bytes(*shape) for shape in shapes)
    )


def _layer(name: str) -> str:
    """`model.layers.3` of a parameter inside a layer."""
    match = re.match(r"(.*?\.\d+)\.", name)
    return match[1] if match else ""
