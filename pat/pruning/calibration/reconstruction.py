"""Reconstruction: after its cut a layer is fitted to what it gave in the model as it was before.

# T real tokens of a step over all ranks, H hidden size
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pat.common.typed import ints
from pat.pruning.calibration.walk import Layer, NotCalibrated

BETAS = (0.9, 0.95)  # of Adam: few steps, so a short memory
EPSILON = 1e-8


def reconstruct(
    layer: Layer,  # in a walk that follows the model as it was; its weights are cut already
    names: Sequence[str],  # parameters of the layer that are fitted
    passes: int,  # over the calibration samples
    lr: float,
    seed: int,
) -> dict[str, Tensor]:
    """The fitted parameters, whole, fp32, as stored: what is 0 in a matrix stays 0. Collective.

    min over W of sum_n ||f_W(x_n) - y_n||^2 / (T H), f the layer, x_n its input in the model that is pruned below and
    y_n its output in the model as it was, by Adam with a rate that falls linearly from lr to 0. A step takes a
    micro-batch of every rank. The layer computes in the walk's dtype, from fp32 weights. Raises NotCalibrated where
    the outputs are not finite. Source: Guo et al. 2024 (EBFT), arXiv:2402.12419, with the mask as it is.
    """
    comm, module = layer.walk.comm, layer.module
    params = [module.get_parameter(name.removeprefix(f"{layer.name}.")) for name in names]
    fitted = [nn.Parameter(layer.walk.whole(name).clone()) for name in names]
    alive = [value.detach() != 0 if value.dim() > 1 else None for value in fitted]
    optimizer: Any = torch.optim.Adam(fitted, lr=lr, betas=BETAS, eps=EPSILON, foreach=False)
    targets = layer.behind()
    for batch, left in _steps(passes, len(targets), seed + layer.index):
        loss, count, gradients = _missing(layer, params, batch, targets[batch])
        loss, number = comm.sum(loss), comm.sum(count)
        if not bool(torch.isfinite(loss)):
            raise NotCalibrated(
                f"{layer.name} cannot be reconstructed: its outputs are not finite; lower criterion.reconstruct_lr"
            )
        for value, flags, gradient in zip(fitted, alive, gradients, strict=True):
            whole = comm.sum(gradient.float()) / number
            value.grad = whole if flags is None else whole * flags
        for group in optimizer.param_groups:
            group["lr"] = lr * left
        optimizer.step()
        with torch.no_grad():
            for param, value in zip(params, fitted, strict=True):
                param.copy_(value)
    return {name: value.detach() for name, value in zip(names, fitted, strict=True)}


def _steps(passes: int, batches: int, seed: int) -> Iterator[tuple[int, float]]:
    """(micro-batch, part of the way that is left): every pass in an order of its own, the same on all ranks."""
    order = torch.Generator().manual_seed(seed)
    for index in range(passes):
        for place, batch in enumerate(ints(torch.randperm(batches, generator=order))):
            yield batch, 1.0 - (index * batches + place) / (passes * batches)


def _missing(
    layer: Layer, params: Sequence[nn.Parameter], batch: int, target: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """The sum of squares that this rank's tokens lack, fp64, of how many numbers, and its gradients."""
    walk = layer.walk
    for param in params:
        param.requires_grad_(True)
    with torch.enable_grad():
        output = walk.calls[layer.index][batch](layer.module, walk.hidden[batch])
        missing = (output.float() - target.float())[walk.real[batch]]
        loss = missing.square().sum()
        gradients = torch.autograd.grad(loss, list(params))
    for param in params:
        param.requires_grad_(False)
    return loss.detach().double(), torch.tensor(missing.numel(), device=loss.device), gradients
