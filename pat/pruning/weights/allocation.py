"""How much of a target each matrix takes, where all of them are to meet it together: those whose weights the loss feels
least give up most.

    a_ij = W_ij^2 E[x_j^2] E[g_i^2]     the loss's change without W_ij, up to a factor of 1/2
    share_m = share of matrix m's weights with a_ij < theta, but within REACH of the target

theta is what makes the shares meet the target exactly. a is Optimal Brain Damage's saliency (LeCun et al. 1989), with
the second derivative of a linear map y = W x as the product of the two means that Kronecker factors have (Martens &
Grosse 2015, arXiv:1503.05671); g = dL/dy. Which weights a matrix gives up is the criterion's choice.

# o outputs and i inputs of a linear map
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pat.common.hashing import tensors_sha256
from pat.common.rounding import part_of
from pat.common.typed import ints, split
from pat.pruning.calibration.back import Loss, Squares, squares
from pat.pruning.calibration.walk import Walk
from pat.pruning.criteria import CHOICE

REACH = 0.15  # a share differs from the target by at most this, the target itself, and half of what it leaves
FLOOR = 0.05  # of the mean, added to an output's mean squared gradient: few samples tell little of the smallest
DROPPED_BITS = 19  # of an fp32 number; the other bits of a positive one, exponent and 4 of its mantissa, are its bin
SHARE = "share|"  # before the name of its matrix
BINS = 1 << (31 - DROPPED_BITS)


@dataclass(frozen=True)
class Weighing:
    """What the loss's gradients say of the matrices before a cut; nothing, if none were taken."""

    outputs: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])  # (o,) fp32, see `output_weights`
    shares: Mapping[str, float] = field(default_factory=dict[str, float])  # each matrix's target; {}: that of all

    def share(self, name: str, target: float) -> float:
        """What a matrix gives up where all of them give up `target`."""
        return self.shares.get(name, target)

    @property
    def digest(self) -> str:
        """A hash of all of it."""
        return tensors_sha256(self.tensors())

    def tensors(self) -> dict[str, Tensor]:
        """All of it, by name."""
        shares = {SHARE + name: torch.tensor(share, dtype=torch.float64) for name, share in self.shares.items()}
        return {**self.outputs, **shares}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Weighing:
        """Of what `tensors` gave."""
        outputs = {name: value for name, value in tensors.items() if not name.startswith(SHARE)}
        return cls(outputs, {name.removeprefix(SHARE): float(v) for name, v in tensors.items() if name not in outputs})


def weigh(
    walk: Walk,
    batches: Sequence[object],
    loss: Loss,
    weights: Mapping[str, Callable[[], Tensor]],  # by matrix: (o, i) fp32 as it is now. Collective
    sparsity: float,
    unit: int | None,  # weights pruned as one, if the matrices meet the target together; None: each by itself
) -> Weighing:
    """Once through the layers and back. Raises NotCalibrated. Collective."""
    outputs: dict[str, Tensor] = {}
    found: dict[str, Tensor] = {}
    for name, measured in squares(walk, batches, loss, list(weights)):
        outputs[name] = output_weights(measured.gradients)
        if unit:
            whole = weights[name]()
            if walk.comm.rank == 0:  # of many experts they take memory
                found[name] = histogram(whole, measured)
    ordered = {name: outputs[name] for name in weights}
    if not unit:
        return Weighing(ordered)
    in_order = {name: found[name] for name in weights if name in found}
    counts = allotted(in_order, sparsity, unit) if in_order else {}
    shares = {name: count / (int(found[name].sum()) // unit) for name, count in counts.items()}
    return Weighing(ordered, walk.comm.gather(shares)[0])


def output_weights(
    gradients: Tensor,  # (o,) fp64: mean squares
) -> Tensor:
    """(o,) fp32: the root of an output's mean squared gradient in relation to the mean of all, not near 0. With rows of
    W multiplied by it, the error of an output counts as much as the loss feels it. 1 where no gradient came, as of an
    expert that none of the samples passes."""
    if not bool((gradients > 0).any()):
        return torch.ones_like(gradients, dtype=torch.float32)
    return (gradients / gradients.mean() + FLOOR).sqrt().float()


def histogram(
    weights: Tensor,  # (o, i) fp32
    measured: Squares,
) -> Tensor:
    """(BINS,) int64, on the host: how many weights there are of each size of a_ij; 0 is in the first bin."""
    counts = torch.zeros(BINS, dtype=torch.int64, device=weights.device)
    x, g = measured.inputs.float(), measured.gradients.float()
    rows = max(1, CHOICE // weights.shape[1])
    for part, each in zip(split(weights, rows), split(g, rows), strict=True):
        sizes = (part.square() * x).mul_(each[:, None]).flatten()
        counts += torch.bincount(sizes.view(torch.int32) >> DROPPED_BITS, minlength=BINS)
    return counts.cpu()


def allotted(
    histograms: Mapping[str, Tensor],  # by matrix (BINS,)
    sparsity: float,
    unit: int = 1,  # weights that are pruned as one
) -> dict[str, int]:
    """How many units each matrix gives up, to exactly the target over all of them.

    What is 0 already is in the first bin, so no matrix gives up less than at an earlier cut, to a lower target.
    """
    counts = [each.cumsum(0).floor_divide_(unit).int() for each in histograms.values()]  # of less than 2^31 each
    below = torch.stack(counts, 1)  # (BINS, matrices)
    sizes = ints(below[-1])
    wanted = part_of(sum(sizes), sparsity)
    reach = min(REACH, (1.0 - sparsity) / 2, sparsity)
    low = torch.tensor([math.floor((sparsity - reach) * size) for size in sizes], dtype=torch.int32)
    most = torch.tensor([math.ceil((sparsity + reach) * size) for size in sizes], dtype=torch.int32)
    taken = torch.minimum(torch.maximum(below, low), most)  # (BINS, matrices), of a theta at the end of each bin
    last = int(torch.searchsorted(taken.sum(1).contiguous(), wanted))  # the first bin with which it is enough
    gone = torch.minimum(below[0], most)
    base = taken[last - 1] if last else gone if int(gone.sum()) <= wanted else low
    return dict(zip(histograms, _filled(ints(base), ints(taken[last] - base), wanted), strict=True))


def _filled(base: list[int], room: list[int], wanted: int) -> list[int]:
    """`base` with as much of `room` as makes it `wanted`, in proportion; what does not divide goes to the first."""
    missing, total = wanted - sum(base), sum(room)
    more = [each * missing // max(total, 1) for each in room]
    left = missing - sum(more)
    for place, each in enumerate(room):
        step = min(left, each - more[place])
        more[place], left = more[place] + step, left - step
    return [b + m for b, m in zip(base, more, strict=True)]
