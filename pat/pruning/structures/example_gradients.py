"""The gradient of a gate example by example, from the backward of the whole micro-batch: nothing is computed twice.

    y = x z, dL/dz = sum over b of c_b, c_b = sum over the tokens and features of row b of x dL/dy

An example is a row of a micro-batch; packed documents are one example together. L is the loss of the global batch, so
with N rows in it, N c_b is the gradient of row b's own loss, however the loss is averaged and the rows are spread.

# B rows of a micro-batch, T tokens, n inputs or outputs of a module, u units, N rows of the global batch
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SUMMED: dict[str, tuple[Callable[[Tensor], Tensor], ...]] = {  # evidence -> what of the c_b is added up
    "squared_gradients": (torch.square,),
    "absolute_gradients": (torch.abs,),
    "gradient_and_size": (torch.positive, torch.abs),
}


class Gated(torch.autograd.Function):
    """x * factor, whose backward gives `take` every row's gradient of the gates, (B, u) fp32."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (B, ..., n)
        z: Tensor,  # (u,), from which the graph learns that a backward is needed, even if x is frozen
        factor: Tensor,  # (n,) or (1,): z in x's dtype
        is_open: bool,  # all of z is 1: x passes as it is
        take: Callable[[Tensor], None],
    ) -> Tensor:
        """(B, ..., n) x * factor, or x itself where all gates are open; `backward` needs x and factor again."""
        ctx.save_for_backward(x, factor)
        ctx.num_units, ctx.is_open, ctx.take = z.numel(), is_open, take
        return x.view_as(x) if is_open else x * factor

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """dL/dx; dL/dz goes to `take` instead."""
        (x, factor), (dy,) = ctx.saved_tensors, grads
        by_input = torch.sum(dy * x, tuple(range(1, x.dim() - 1)), dtype=torch.float32)  # (B, n)
        ctx.take(by_input.view(len(x), ctx.num_units, -1).sum(-1))
        dx = None if not ctx.needs_input_grad[0] else dy if ctx.is_open else dy * factor
        return dx, None, None, None, None


def line(of: str, gradients: Tensor) -> Tensor:
    """(k u + 1,) fp64: the k sums over the rows of a micro-batch, and their number. gradients (B, u)."""
    each = gradients.double()
    sums = torch.cat([what(each).sum(0) for what in SUMMED[of]])
    return torch.cat([sums, sums.new_full((1,), len(gradients))])


def mean(
    of: str,
    line: Tensor,  # (k u + 1,) fp64, summed over micro-batches and ranks
    scale: float,  # L's gradient times this is what the rows were given: the loss scale times the number of ranks
) -> Tensor:
    """(k, u) the means over the examples of (N c_b)^2, of |N c_b|, or of N c_b, which is dL/dz, and |N c_b|."""
    sums, count = line[:-1].view(len(SUMMED[of]), -1), line[-1]
    return count * sums / scale**2 if of == "squared_gradients" else sums / scale
