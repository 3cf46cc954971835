"""Evens out what ZeRO 3 computes differently from stages 0 to 2, so that every stage gives the same bits.

1. A linear map with a bias. On inputs of more than two dimensions ZeRO 3's memory-saving one (zero/linear.py,
   LinearFunctionForZeroStage3) rounds x W^T before it adds the bias; torch's rounds once. And a gradient that does not
   lie in memory token by token, as that of attention's keys, it adds up for the bias in another order than torch's,
   which first copies it. Here it does as torch's.

2. The order in which gradients are added up. ZeRO 3 passes each positional input of a module through an autograd
   function of that module (zero/parameter_offload.py, PostBackwardFunctionModule). Where x is used inside a module and
   outside, as by the residual around BERT's attention or by W, A and others around a LoRA adapter, its gradient is

       ZeRO 3:  outside + (inside_1 + inside_2)        ZeRO 0, 1, 2:  (outside + inside_1) + inside_2

   So the other stages get a node at the same place: a view, which costs no memory and no pass, but 15 us of Python a
   module and step (CPU), 3 ms in a model of 30 layers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pat.common.typed import untyped

_USE_ONCE = (nn.Linear, nn.Embedding, nn.Dropout, nn.Identity)  # modules that use their input once: nothing to add up


def compute_as_everywhere(model: nn.Module, partitioned: bool) -> None:
    """Call once the engine exists; `partitioned`: ZeRO 3."""
    if not partitioned:
        for module in model.modules():
            if type(module) not in _USE_ONCE:
                module.register_forward_pre_hook(_own_inputs)
        return
    from deepspeed.runtime.zero import linear  # pyright: ignore[reportMissingTypeStubs]

    theirs = untyped(linear).LinearFunctionForZeroStage3
    if theirs.forward is not _linear:  # else an engine of this process has done so
        theirs.forward, theirs.backward = staticmethod(_linear), staticmethod(partial(_backward, theirs.backward))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Torch's own, which DeepSpeed has replaced in torch.nn.functional."""
    return torch.ops.aten.linear(input, weight, bias)


def _backward(theirs: Callable[..., Any], ctx: Any, gradient: Tensor) -> Any:
    """DeepSpeed's own, of a gradient whose rows lie as torch's has them; one that lies so is not copied."""
    return theirs(ctx, gradient.contiguous())


def _own_inputs(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if not torch.is_grad_enabled():
        return None
    return tuple(x.view_as(x) if isinstance(x, Tensor) and x.requires_grad else x for x in args)
