"""How much the magnitude counts beside the evidence: rank = S + c W^2, with c from the sizes of both.

# G groups that are ranked together: all matrices, or each by itself

    c = weight * RMS(S) / mean(W^2)     over all weights of the group, on all ranks; 1 while S is 0: the magnitude alone

The mean, because in pretrained encoders a few outliers make up the RMS of W^2, far above what a ranking has to part.
c is computed at a selection from what a checkpoint holds, so it is no state. Sums of fp64 depend a little on how ranks
cut the shards: c keeps BITS bits, far fewer than agree, so it is the same number whatever the cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pat.common.comm import Comm
from pat.common.typed import floats
from pat.pruning.weights.kernels import masked_sum_of_squares

BITS = 8


def coefficients(
    pieces: Sequence[tuple[int, Tensor, Tensor]],  # (group, score (n,) fp32, dense (n,) fp32)
    num_groups: int,
    weight: float,
    comm: Comm,
) -> list[float]:
    """(G,) c of every group. Collective."""
    sums = torch.zeros(3, num_groups, dtype=torch.float64)
    for g, score, dense in pieces:
        sums[0, g] += masked_sum_of_squares(score).cpu()
        sums[1, g] += masked_sum_of_squares(dense).cpu()
        sums[2, g] += score.numel()
    of_groups = zip(*(floats(row) for row in comm.sum(sums)), strict=True)
    return [_rounded(weight * math.sqrt(s * n) / w) if s and w else 1.0 for s, w, n in of_groups]


def _rounded(c: float) -> float:
    """To BITS bits, a number that fp32 holds."""
    if not math.isfinite(c):
        return c
    mantissa, exponent = math.frexp(c)
    return math.ldexp(round(mantissa * (1 << BITS)), exponent - BITS)
