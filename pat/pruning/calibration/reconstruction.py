"""Reconstruction: after its cut a layer is fitted to what it gave in the model as it was before.

# T real tokens of a step over all ranks, H hidden size
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pat.common.comm import Comm
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
) -> Iterator[tuple[str, Tensor]]:
    """The fitted parameters, whole, fp32, as stored, one at a time: what is 0 in a matrix stays 0. Collective.

    min over W of sum_n ||f_W(x_n) - y_n||^2 / (T H), f the layer, x_n its input in the model that is pruned below and
    y_n its output in the model as it was, by Adam with a rate that falls linearly from lr to 0. A step takes a
    micro-batch of every rank. The layer computes in the walk's dtype, from fp32 weights; these, with their moments, are
    shared out among the ranks, each parameter to one. Raises NotCalibrated where the outputs are not finite. Source:
    Guo et al. 2024 (EBFT), arXiv:2402.12419, with the mask as it is.
    """
    comm, module = layer.walk.comm, layer.module
    targets = layer.behind()
    params = [module.get_parameter(name.removeprefix(f"{layer.name}.")) for name in names]
    owners = shared_out([param.numel() for param in params], comm.world_size)
    fits = [_Fit.of(layer.walk.whole(name), owner == comm.rank) for name, owner in zip(names, owners, strict=True)]
    for batch, left in _steps(passes, len(targets), seed + layer.index):
        loss, count, gradients = _missing(layer, params, batch, targets[batch])
        loss, number = comm.sum(loss), comm.sum(count)
        if not bool(torch.isfinite(loss)):
            raise NotCalibrated(
                f"{layer.name} cannot be reconstructed: its outputs are not finite; lower criterion.reconstruct_lr"
            )
        while gradients:
            place = len(gradients) - 1
            whole = comm.sum(gradients.pop().float())
            fits[place].step(whole.div_(number), lr * left)
            with torch.no_grad():
                params[place].copy_(fits[place].told(params[place].dtype, comm))
    for name, fit in zip(names, fits, strict=True):
        yield name, fit.told(torch.float32, comm)


def shared_out(
    sizes: Sequence[int],  # of parameters
    ranks: int,
) -> list[int]:
    """Which rank fits each: the largest first, to whoever has least."""
    held, owners = [0] * ranks, [0] * len(sizes)
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        owners[place] = held.index(min(held))
        held[owners[place]] += sizes[place]
    return owners


class _Fit:
    """One parameter while it is fitted; on other ranks than its owner only its shape."""

    def __init__(self, shape: torch.Size, value: Tensor | None) -> None:
        self.shape = shape
        self.value = None if value is None else nn.Parameter(value)
        self.alive = None if value is None or value.dim() < 2 else value != 0
        self.optimizer: Any = None
        if self.value is not None:
            self.optimizer = torch.optim.Adam([self.value], betas=BETAS, eps=EPSILON, foreach=False)

    @staticmethod
    def of(whole: Tensor, owned: bool) -> _Fit:
        """Of a parameter as it is; where it is not owned, the values are let go."""
        return _Fit(whole.shape, whole if owned else None)

    def step(self, gradient: Tensor, rate: float) -> None:
        """One of Adam, on the owner."""
        if self.value is None:
            return
        self.value.grad = gradient if self.alive is None else gradient.mul_(self.alive)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.value.grad = None

    def told(self, dtype: torch.dtype, comm: Comm) -> Tensor:
        """What it is now, on every rank, as bytes: a sum of floats would turn -0.0 into 0.0. Collective."""
        if self.value is not None:
            value = self.value.detach().to(dtype)
        else:
            value = torch.zeros(self.shape, dtype=dtype, device=comm.device)
        if comm.world_size == 1:
            return value
        return comm.sum(value.clone().contiguous().view(-1).view(torch.uint8)).view(dtype).view(self.shape)


def _steps(passes: int, batches: int, seed: int) -> Iterator[tuple[int, float]]:
    """(micro-batch, part of the way that is left): every pass in an order of its own, the same on all ranks."""
    order = torch.Generator().manual_seed(seed)
    for index in range(passes):
        for place, batch in enumerate(ints(torch.randperm(batches, generator=order))):
            yield batch, 1.0 - (index * batches + place) / (passes * batches)


def _missing(
    layer: Layer, params: Sequence[nn.Parameter], batch: int, target: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The sum of squares that this rank's tokens lack, fp64, of how many numbers, and its gradients."""
    walk = layer.walk
    for param in params:
        param.requires_grad_(True)
    with torch.enable_grad():
        output = walk.calls[layer.index][batch](layer.module, walk.hidden[batch])
        missing = (output.float() - target.float())[walk.real[batch]]
        loss = missing.square().sum()
        gradients = list(torch.autograd.grad(loss, list(params)))
    for param in params:
        param.requires_grad_(False)
    return loss.detach().double(), torch.tensor(missing.numel(), device=loss.device), gradients
