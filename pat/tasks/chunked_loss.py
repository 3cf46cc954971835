"""A language model's loss in chunks of tokens: the logits of all tokens never exist at once, in any dtype.

During a call of the model, its output head runs another forward, which goes through the hidden states chunk by
chunk: logits, loss, and at once the loss's gradients with respect to the hidden states and the head. The backward only
scales these, so that nothing is computed twice and a chunk's logits are gone before the next.

It happens inside the head's own call, so ZeRO 3 gathers the head's weight once in the forward and once in the backward,
whatever the number of chunks: so ranks with batches of different lengths stay in step. Sums, not means, are
differentiated: their gradients are of the size of 1, and fp16 does not lose them.

The gradient in the forward is that of Liger-Kernel's fused linear cross-entropy, Hsu et al. 2024, arXiv:2410.10989;
here any loss of a row can be summed, on any device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

# b samples, s tokens, n = b s rows, m of a chunk, d hidden size, v vocabulary, k sums

Rows = Callable[[Tensor, slice], Tensor]  # logits (m, v) of a chunk, which of the n rows these are -> (m, k) fp32

# Model types for which a test has shown that their logits are what the head puts out, neither capped nor scaled.
PLAIN_HEADS = (
    "gpt2", "gpt_neox", "llama", "mistral", "mixtral", "olmo2", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3",
    "starcoder2",
)  # fmt: skip


def check(config: Any) -> None:
    """ValueError for a model whose logits are not known to be its head's outputs."""
    if config.model_type not in PLAIN_HEADS:
        raise ValueError(
            f"task.loss_chunk_tokens is not for a {config.model_type}, which may cap or scale what its head puts out; "
            f"it is for {', '.join(PLAIN_HEADS)}: take task.loss_chunk_tokens=null"
        )


@dataclass(frozen=True)
class Head:
    """A model's output head while its forward is replaced."""

    parameters: tuple[nn.Parameter, ...]  # those that train
    own: Callable[[Tensor], Tensor]  # its own forward, (m, d) -> (m, v)


@contextmanager
def at_head(model: Any, forward: Callable[[Head, Tensor], Tensor]) -> Iterator[None]:
    """Inside it the head puts out forward(head, hidden states (b, s, d)), which the model hands on as its logits."""
    module: Any = getattr(model, "module", model).get_output_embeddings()
    cls = type(module)
    if cls is not nn.Linear:
        kind = f"{cls.__module__.partition('.')[0]}.{cls.__name__}"
        raise ValueError(
            f"task.loss_chunk_tokens needs a plain linear output head, and this model's is a {kind}: "
            "take task.loss_chunk_tokens=null, or leave the head out of peft.target_modules"
        )
    head = Head(tuple(p for p in module.parameters() if p.requires_grad), module.forward)
    module.forward = lambda hidden: forward(head, hidden)
    try:
        yield
    finally:
        del module.forward


def sums(
    head: Head,
    hidden: Tensor,  # (b, s, d)
    rows: Rows,
    weights: Tensor,  # (b, s) fp32
    size: int,  # rows of a chunk
) -> Tensor:
    """(k,) fp32: each of a row's k values, times the row's weight, summed. Only the first sum has a gradient."""
    work = _Work(head, rows, weights.reshape(-1, 1), size)
    out: Any = _Sums.apply(work, hidden.reshape(-1, hidden.shape[-1]), *head.parameters)
    return out


def per_row(head: Head, hidden: Tensor, rows: Rows, size: int) -> Tensor:
    """(b, s, k) fp32: a row's k values, without a gradient. hidden (b, s, d)."""
    flat = hidden.detach().reshape(-1, hidden.shape[-1])
    with torch.no_grad():
        return torch.cat([rows(head.own(flat[part]), part) for part in chunks(len(flat), size)]).unflatten(
            0, hidden.shape[:-1]
        )


def chunks(total: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `total`."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


@dataclass(frozen=True)
class _Work:
    head: Head
    rows: Rows
    weights: Tensor  # (n, 1)
    size: int


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


class _Sums(torch.autograd.Function):
    """The sums, and the first one's gradients, which are computed with it and kept for the backward.

    A chunk's own graph is gone before the next: hooks that offload or count what a backward needs do not see it.
    """

    @staticmethod
    def forward(ctx: Any, work: _Work, hidden: Tensor, *parameters: Tensor) -> Tensor:
        """(k,) of hidden states (n, d)."""
        wanted = [each for each, needed in zip((hidden, *parameters), ctx.needs_input_grad[1:], strict=True) if needed]
        # Of the head in fp32: in bf16 what a chunk adds to a long sum is lost in its rounding.
        grads = [torch.zeros_like(each, dtype=None if each is hidden else torch.float32) for each in wanted]
        total: Any = 0.0
        for part in chunks(len(hidden), work.size):
            with torch.set_grad_enabled(bool(wanted)), saved_tensors_hooks(_as_it_is, _as_it_is):
                x = hidden[part].detach().requires_grad_(bool(wanted))
                sums = (work.rows(work.head.own(x), part) * work.weights[part]).sum(0)
                if wanted:
                    inputs = [x if each is hidden else each for each in wanted]
                    for each, have, new in zip(wanted, grads, torch.autograd.grad(sums[0], inputs), strict=True):
                        if each is hidden:
                            have[part] = new
                        else:
                            have += new
            total = total + sums.detach()
        ctx.save_for_backward(*grads)
        ctx.dtypes = [each.dtype for each in wanted]
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Any, ...]:
        """The gradients times that of the first sum; in place, so a second backward is an error."""
        scaled = [grad.mul_(outer[0][0].to(grad.device)) for grad in ctx.saved_tensors]
        grads = iter([grad.to(dtype) for grad, dtype in zip(scaled, ctx.dtypes, strict=True)])
        return None, *(next(grads) if needed else None for needed in ctx.needs_input_grad[1:])
