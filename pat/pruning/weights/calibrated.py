"""The cut of a calibrated criterion: matrix by matrix in a walk over the layers, each on what the cut ones below give.

# o outputs and i inputs of a linear map
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pat.pruning.calibration.journal import KEEP, Journal
from pat.pruning.calibration.needs import too_large
from pat.pruning.calibration.reconstruction import reconstruct
from pat.pruning.calibration.walk import Layer, Walk
from pat.pruning.criteria import Calibrated
from pat.pruning.weights.whole import WholeMatrices, chooser

_Cut = tuple[Tensor, Tensor]  # flags (o, i) uint8, weights (o, i) fp32


@dataclass(frozen=True)
class Method:
    """What decides, with the inputs, on what a cut gives."""

    criterion: Calibrated
    granularity: Any
    sparsity: float
    scope: str
    seed: int


def cut(method: Method, walk: Walk, matrices: WholeMatrices, journal: Journal) -> None:
    """Layer by layer: choose by what goes into its matrices, and let the survivors take over; what an earlier start
    has cut is taken over. Flags and weights are in the shards then. Collective."""
    for layer in walk:
        known = journal.known(layer)
        if known is None:
            _cut_layer(method, layer, matrices, journal)
            journal.write(layer)
            continue
        for name, values in known:
            if name.startswith(KEEP):
                matrices.mark(name.removeprefix(KEEP), values)
            else:
                matrices.fit(name, values)


def _cut_layer(method: Method, layer: Layer, matrices: WholeMatrices, journal: Journal) -> None:
    """Into the shards and the journal. Collective."""
    criterion = method.criterion
    names = [name for name in matrices.shapes if name.startswith(f"{layer.name}.")]
    if not names:
        return
    for name, made in _cuts(method, layer, names, matrices):
        flags, values = (matrices.turned(name, each) for each in made)
        matrices.mark(name, flags)
        matrices.fit(name, values)
        journal.put(KEEP + name, flags.bool())
        journal.put(name, values)
    if criterion.reconstruct:
        layer.refresh(names)
        settings = criterion.reconstruct, criterion.reconstruct_lr, method.seed
        for name, fitted in reconstruct(layer, names, *settings).items():
            matrices.fit(name, fitted)
            journal.put(name, fitted)


def _cuts(
    method: Method,
    layer: Layer,
    names: Sequence[str],  # matrices of the layer
    matrices: WholeMatrices,
) -> Iterable[tuple[str, _Cut]]:
    """The cut of every matrix of a layer. Each is computed by one rank, and the others get it. Collective."""
    comm = layer.walk.comm
    inputs = layer.collect({name: method.criterion.statistics for name in names})
    mine: dict[str, _Cut | str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for place, name in enumerate(names):
        dense = matrices.weights(name)
        shapes[name] = tuple(dense.shape)
        if place % comm.world_size == comm.rank:
            mine[name] = _cut(method, name, dense, inputs[name])
    refused = [said for each in comm.gather([v for v in mine.values() if isinstance(v, str)]) for said in each]
    if refused:
        raise ValueError(refused[0])
    for name in names:
        flags, values = mine.pop(name, None) or (
            torch.zeros(shapes[name], dtype=torch.uint8, device=comm.device),
            torch.zeros(shapes[name], device=comm.device),
        )
        assert not isinstance(flags, str) and not isinstance(values, str)
        yield name, (comm.sum(flags), comm.sum(values))


def _cut(method: Method, name: str, dense: Tensor, inputs: Mapping[Any, Tensor]) -> _Cut | str:
    """The cut, or why there is none: the other ranks wait, so an error is told and not raised."""
    criterion, choose = method.criterion, chooser(name, method.granularity, method.sparsity, method.scope)
    try:
        keep, weights = criterion.cut(dense, inputs, choose)
    except (MemoryError, torch.OutOfMemoryError):
        return too_large(name, criterion.name, criterion.cut_bytes(*dense.shape))
    except (ValueError, RuntimeError) as error:  # torch's errors of linear algebra are RuntimeErrors
        return f"{name} cannot be pruned by {criterion.name}: {error}"
    if not bool(torch.isfinite(weights).all()):
        return f"{name}: {criterion.name} gives weights that are not finite; raise its damping, or take more samples"
    return keep.to(torch.uint8).contiguous(), weights.float().contiguous()
