"""Reconstruction: after its cut a layer is fitted to what it gave in the model as it was before.

# T real tokens of a step over all ranks, H hidden size
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pat.common.comm import Comm
from pat.common.typed import floats, ints
from pat.models.experts import expert_of, parameter_of
from pat.pruning.calibration.hidden import HiddenStates
from pat.pruning.calibration.needs import no_room_to_fit
from pat.pruning.calibration.room import Room
from pat.pruning.calibration.walk import Layer, NotCalibrated

BETAS = (0.9, 0.95)  # of Adam: few steps, so a short memory
EPSILON = 1e-8
TRIES = 3  # rates at which a layer is fitted, each a quarter of the one before, until it ends nearer
LEAST_SCALE = 2.0**-24  # of a loss whose gradients fp16 does not hold
SAME = 1e-10  # of the squares of what it gave before: a layer that differs by less is not fitted
LOOKS = 4  # micro-batches of a rank on which that is seen
FP32 = 4  # bytes of a number
ADAM = 13  # bytes of a weight while it is fitted: fp32 value and two moments, flag


def reconstruct(
    layer: Layer,  # in a walk that follows the model as it was; its weights are cut already
    names: Sequence[str],  # parameters of the layer that are fitted, or linear maps: of experts each by itself
    passes: int,  # over the calibration samples
    lr: float,
    seed: int,
    stays: Mapping[str, Tensor] | None = None,  # by name, what is 0 where a weight is gone; shapes broadcast
) -> Iterator[tuple[str, Tensor]]:
    """What is fitted, whole, fp32, as stored, one at a time. What is 0 in a matrix stays 0, and so does what is 0 in
    `stays`, where rounding may have left a little. Nothing, where the cut has changed nothing. A layer that ends no
    nearer at any of TRIES rates stays as it is, and a warning says so. Collective.

    min over W of sum_n ||f_W(x_n) - y_n||^2 / (T H), f the layer, x_n its input in the model that is pruned below and
    y_n its output in the model as it was, by Adam with a rate that falls linearly from lr to 0. A step takes a
    micro-batch of every rank. The layer computes in the walk's dtype, from fp32 weights; these, with their moments, are
    shared out among the ranks, each name to one. Raises NotCalibrated where the outputs are not finite, and on all
    ranks where one has no memory. Source: Guo et al. 2024 (EBFT), arXiv:2402.12419, with the mask as it is.
    """
    walk, comm = layer.walk, layer.walk.comm

    def sentence() -> str:
        sizes = {name: view.numel() for name, view in _views(layer, names).items()}
        return no_room_to_fit(layer.name, fit_bytes(sizes, comm.world_size, walk.dtype.itemsize))

    room = Room(comm, sentence)
    before, size = _distance(layer, room)
    if not math.isfinite(before):
        raise NotCalibrated(f"{layer.name} cannot be reconstructed: its outputs are not finite")
    if before <= SAME * size:
        return
    rates = [lr / 4**tried for tried in range(TRIES)]
    for rate in rates:
        fits = _fit(layer, names, passes, rate, seed, room, stays or {})
        if _distance(layer, room)[0] < before:
            for name, fit in fits.items():
                yield name, fit.told(torch.float32)
            return
        del fits
        walk.fill(list(_by_parameter(names)))
    walk.warn(
        "layer not fitted",
        f"warning: {layer.name} stays as it was cut: fitting it ended no nearer to what it gave before, at "
        f"reconstruct_lr={lr:g} and down to {rates[-1]:g}. Give a lower one, or reconstruct=0",
    )


def _fit(
    layer: Layer, names: Sequence[str], passes: int, lr: float, seed: int, room: Room, stays: Mapping[str, Tensor]
) -> dict[str, _Fit]:
    """What is fitted after all steps, or up to the first loss that is not finite; it is the layer's. Collective."""
    walk, comm, targets = layer.walk, layer.walk.comm, layer.behind()
    views, held = _views(layer, names), _by_parameter(names)
    params = [layer.module.get_parameter(owner.removeprefix(f"{layer.name}.")) for owner in held]
    ranks = shared_out([view.numel() for view in views.values()], comm.world_size)
    owners = dict(zip(views, ranks, strict=True))
    fits = dict[str, _Fit]()
    for owner, several in held.items():
        gathered = walk.whole(owner)
        for name in several:
            if name in stays:
                open_ = stays[name].to(gathered.device)
                _part(gathered, name).mul_(open_)
                views[name].mul_(open_)
            fits[name] = room.given(partial(_Fit.of, _part(gathered, name), owners[name], comm))
        del gathered
    for batch, left in _steps(passes, len(targets), seed + layer.index):
        made = room.attempt(partial(_missing, layer, params, batch, targets))
        loss, count = made[0][:2] if made else (0.0, 0)
        figures = torch.tensor([loss, count, bool(room.said)], dtype=torch.float64, device=comm.device)
        total, number, failed = floats(comm.sum(figures))  # in one collective: there are many steps
        if failed:
            room.check()
        if not math.isfinite(total):
            break
        ((_, _, gradients, scale),) = made
        for several in reversed(held.values()):
            of_parameter = gradients.pop()
            for name in several:
                gradient = _part(of_parameter, name).float()
                whole = comm.sum_on(owners[name], gradient if scale == 1.0 else gradient.div_(scale))
                room.attempt(partial(fits[name].step, whole.div_(number), lr * left))
                views[name].copy_(fits[name].told(views[name].dtype))
    return {name: fits[name] for name in names}


def _by_parameter(names: Sequence[str]) -> dict[str, list[str]]:
    """The names by the parameter that holds them."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(parameter_of(name), []).append(name)
    return found


def _views(layer: Layer, names: Sequence[str]) -> dict[str, Tensor]:
    """Each of the names in the layer's own memory."""
    return {
        name: _part(layer.module.get_parameter(parameter_of(name).removeprefix(f"{layer.name}.")).detach(), name)
        for name in names
    }


def _part(whole: Tensor, name: str) -> Tensor:
    """What a parameter has of a linear map: all of it, or an expert's."""
    expert = expert_of(name)
    return whole if expert is None else whole[expert]


@torch.no_grad()
def _distance(layer: Layer, room: Room) -> tuple[float, float]:
    """How far the layer is from what it gave before, on a few micro-batches, and how large that is: sums of squares.
    Collective."""

    def here() -> Tensor:
        targets = layer.behind()
        looks = range(0, len(targets), max(1, len(targets) // LOOKS))
        return torch.stack([sums(batch, targets[batch]) for batch in looks]).sum(0)

    def sums(batch: int, target: Tensor) -> Tensor:
        both = _difference(layer, batch, target), target.float()
        return torch.stack([each.square().sum(dtype=torch.float64) for each in both])

    missing, size = floats(layer.walk.comm.sum(room.given(here)))
    return missing, size


def fit_bytes(
    sizes: Mapping[str, int],  # by name, of what is fitted together
    ranks: int,
    itemsize: int,  # of the forward's dtype
) -> int:
    """What the rank with most of them holds beside the layer: gradients in the forward's dtype, its share of fp32
    weights, flags and moments, an fp32 gradient and what Adam makes of it; or before the first step, where that is
    more, a whole parameter beside its share of weights and flags. What the backward keeps is not counted."""
    shares = [0] * ranks
    for size, owner in zip(sizes.values(), shared_out(list(sizes.values()), ranks), strict=True):
        shares[owner] += size
    parameters = Counter[str]()
    for name, size in sizes.items():
        parameters[parameter_of(name)] += size
    fitting = itemsize * sum(sizes.values()) + ADAM * max(shares) + 3 * FP32 * max(sizes.values())
    return max(fitting, FP32 * max(parameters.values()) + (FP32 + 1) * max(shares))


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

    def __init__(self, shape: torch.Size, value: Tensor | None, owner: int, comm: Comm) -> None:
        self.shape, self.owner, self.comm = shape, owner, comm
        self.value = None if value is None else nn.Parameter(value)
        self.alive = None if value is None or value.dim() < 2 else value != 0
        self.optimizer: Any = None
        if self.value is not None:
            self.optimizer = torch.optim.Adam([self.value], betas=BETAS, eps=EPSILON, foreach=False)

    @staticmethod
    def of(whole: Tensor, owner: int, comm: Comm) -> _Fit:
        """Of a parameter as it is, or of a part of one; where it is not owned, the values are let go."""
        is_part = whole.untyped_storage().nbytes() > whole.nbytes
        own = whole.clone() if is_part and owner == comm.rank else whole
        return _Fit(whole.shape, own if owner == comm.rank else None, owner, comm)

    def step(self, gradient: Tensor, rate: float) -> None:
        """One of Adam, on the owner."""
        if self.value is None:
            return
        self.value.grad = gradient if self.alive is None else gradient.mul_(self.alive)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.value.grad = None

    def told(self, dtype: torch.dtype) -> Tensor:
        """What it is now, on every rank. Collective."""
        if self.value is not None:
            return self.comm.broadcast(self.owner, self.value.detach().to(dtype))
        return self.comm.broadcast(self.owner, torch.empty(self.shape, dtype=dtype, device=self.comm.device))


def _steps(passes: int, batches: int, seed: int) -> Iterator[tuple[int, float]]:
    """(micro-batch, part of the way that is left): every pass in an order of its own, the same on all ranks."""
    order = torch.Generator().manual_seed(seed)
    for index in range(passes):
        for place, batch in enumerate(ints(torch.randperm(batches, generator=order))):
            yield batch, 1.0 - (index * batches + place) / (passes * batches)


def _missing(
    layer: Layer, params: Sequence[nn.Parameter], batch: int, targets: HiddenStates
) -> tuple[float, int, list[Tensor], float]:
    """The sum of squares that this rank's tokens lack, of how many numbers, its gradients, and the power of 2 by which
    these are multiplied so that fp16 holds them."""
    for param in params:
        param.requires_grad_(True)
    with torch.enable_grad():
        missing = _difference(layer, batch, targets[batch])
        loss, scale = missing.square().sum(), 1.0
        narrow = any(param.dtype == torch.float16 for param in params)
        gradients = list(torch.autograd.grad(loss, list(params), retain_graph=narrow))
        while narrow and scale > LEAST_SCALE and not all(bool(g.isfinite().all()) for g in gradients):
            scale /= 16
            gradients = list(torch.autograd.grad(loss * scale, list(params), retain_graph=True))
    for param in params:
        param.requires_grad_(False)
    return float(loss.detach()), missing.numel(), gradients, scale


def _difference(layer: Layer, batch: int, target: Tensor) -> Tensor:
    """(tokens, H) what the layer gives now, less the target, where there is no padding."""
    walk = layer.walk
    output = walk.calls[layer.index][batch](layer.module, walk.hidden[batch])
    return (output.float() - target.float())[walk.real[batch]]
