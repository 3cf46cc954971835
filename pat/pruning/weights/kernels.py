"""The element-wise passes over a flat shard, written once; compiled into one fused loop each, or run in small chunks.

Both ways give the same bits, as does any way of cutting a shard: each element goes through the same roundings, because
products and sums are never contracted (`s - d * g` compiles to a multiplication and a subtraction).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from pat.common.typed import compiled, split
from pat.pruning.criteria import Criterion

log = logging.getLogger(__name__)

MODES = ("auto", "compile", "eager")
CHUNK = {"cpu": 1 << 18}  # elements a thread works on at a time: they fit its caches, and hide the cost of calls
SUM_CHUNK = 1 << 14  # a sum this short never splits over threads
CHUNK_ACCELERATOR = 1 << 26  # launches are expensive, and temporaries only have to fit
AUTO_COMPILE_FROM = 1 << 23  # elements from which compiling pays off within some hundred steps
OPTIONS = {
    "cpp.enable_floating_point_contract_flag": "off",
    "cpp.dynamic_threads": True,  # the number of threads is read at each call, not built in
    "emulate_precision_casts": True,  # accelerators: no contraction either
}


class MaskedGrad(Protocol):
    """The settings of `pat.schema.MaskedGradConfig`."""

    @property
    def name(self) -> str:
        """One of zero and straight_through."""
        ...

    @property
    def sr_ste(self) -> float:
        """Weight decay of masked weights."""
        ...


class Pass:
    """One in-place function of flat tensors of equal length, and 0-dim ones; compiled when that pays."""

    def __init__(self, function: Callable[..., None], mode: str) -> None:
        self.function, self.mode = function, mode
        self.compiled = compiled(function, OPTIONS)

    @torch.no_grad()
    def __call__(self, *tensors: Tensor) -> None:
        """Run over all elements."""
        tensors = tuple(t.detach() for t in tensors)
        numel = max(t.numel() for t in tensors if t.dim())
        if self.mode != "eager" and numel > (1 if self.mode == "compile" else AUTO_COMPILE_FROM):
            try:
                return self.compiled(*tensors)
            except Exception as error:
                if self.mode == "compile":
                    raise RuntimeError(
                        "engine.kernels is compile, but the pruning kernels do not compile here (see the cause above); "
                        "install a C++ compiler or set engine.kernels=eager."
                    ) from error
                _warn_once(error)
                self.mode = "eager"
        for chunk in _chunks(tensors, numel):
            self.function(*chunk)


class Kernels:
    """The passes of one pruner, all in place."""

    def __init__(self, criterion: Criterion, masked_grad: MaskedGrad, mode: str) -> None:
        descent, scored = criterion.descent, criterion.needs_score
        straight, sr_ste = masked_grad.name == "straight_through", float(masked_grad.sr_ste)
        self.sr_ste = sr_ste

        def evidence(score: Tensor, dense: Tensor, grad: Tensor, coef: Tensor) -> None:
            score.sub_(descent(score, dense, grad, coef))

        def soft(dense: Tensor, grad: Tensor, keep: Tensor) -> None:
            if not straight:
                grad.mul_(keep.to(grad.dtype))

        def soft_decay(dense: Tensor, grad: Tensor, keep: Tensor, shift: Tensor, dead: Tensor) -> None:
            soft(dense, grad, keep)
            k = keep.to(dense.dtype)
            masked = (1.0 - k) * dead if sr_ste else None
            factor = k.mul_(shift) if masked is None else k.mul_(shift).add_(masked)
            dense.mul_(factor.add_(1.0))

        def soft_score(score: Tensor, dense: Tensor, grad: Tensor, keep: Tensor, coef: Tensor) -> None:
            evidence(score, dense, grad, coef)
            soft(dense, grad, keep)

        def soft_score_decay(
            score: Tensor, dense: Tensor, grad: Tensor, keep: Tensor, coef: Tensor, shift: Tensor, dead: Tensor
        ) -> None:
            evidence(score, dense, grad, coef)
            soft_decay(dense, grad, keep, shift, dead)

        def effective(out: Tensor, dense: Tensor, keep: Tensor) -> None:
            torch.mul(dense, keep.to(dense.dtype), out=out)

        def masked(grad: Tensor, keep: Tensor) -> None:
            grad.mul_(keep.to(grad.dtype))

        self.scored = scored
        self._evidence = Pass(evidence, mode)
        self._soft, self._soft_decay = (
            Pass(soft_score if scored else soft, mode),
            Pass(soft_score_decay if scored else soft_decay, mode),
        )
        self._effective, self._masked = Pass(effective, mode), Pass(masked, mode)

    def pre_dense(
        self,
        score: Tensor | None,  # (n,) fp32, written
        dense: Tensor,  # (n,) fp32
        grad: Tensor,  # (n,) fp32
        coef: float,  # the criterion's coefficient of this step
    ) -> None:
        """Dense phase, before the optimizer: evidence only, S <- update(S, W, G)."""
        if self.scored:
            assert score is not None
            self._evidence(score, dense, grad, _scalar(coef))

    def pre_soft(
        self,
        score: Tensor | None,  # (n,) fp32, written
        dense: Tensor,  # (n,) fp32, written
        grad: Tensor,  # (n,) fp32, written
        keep: Tensor,  # (n,) uint8
        coef: float,  # the criterion's coefficient of this step
        decay: float,  # learning rate * weight decay
        lr: float = 0.0,  # learning rate
    ) -> None:
        """Soft phase, before the optimizer: S <- update(S, W, G); G <- G * M; W <- W * (1 - decay * M).

        Straight-through: G stays, and masked weights decay, W <- W * (1 - lr * sr_ste * (1 - M)): SR-STE
        (arXiv:2102.04010), which adds sr_ste * (1 - M) * W to G. With SGD that is the same; Adam would divide its size
        away, so it is decoupled as weight decay is in AdamW (as in arXiv:2407.20584). The factor of a living weight has
        the bits of torch's AdamW: 1 - decay in fp64, rounded once; as its distance to 1 is exact in fp32, so is
        1 + M * distance.
        """
        scalars = [_scalar(coef)] if self.scored else []
        tensors = [dense, grad, keep]
        if self.scored:
            assert score is not None
            tensors.insert(0, score)
        dead = lr * self.sr_ste
        if decay or dead:
            self._soft_decay(*tensors, *scalars, _scalar(1.0 - decay) - 1.0, _scalar(1.0 - dead) - 1.0)
        else:
            self._soft(*tensors, *scalars)

    def post_soft(
        self,
        out: Tensor,  # (n,) fp32, written
        dense: Tensor,  # (n,) fp32
        keep: Tensor,  # (n,) uint8
    ) -> None:
        """Soft phase, after the optimizer: the effective weights, out <- W * M."""
        self._effective(out, dense, keep)

    def pre_hard(
        self,
        grad: Tensor,  # (n,) fp32, written
        keep: Tensor,  # (n,) uint8
    ) -> None:
        """Hard phase, before the optimizer: G <- G * M."""
        self._masked(grad, keep)


def make_kernels(criterion: Criterion, masked_grad: MaskedGrad, mode: str = "auto") -> Kernels:
    """The passes for a criterion and a treatment of masked gradients. ValueError for settings that do not exist."""
    if mode not in MODES:
        raise ValueError(f"engine.kernels is {mode!r}, but must be one of {', '.join(MODES)}.")
    if masked_grad.name not in ("zero", "straight_through"):
        raise ValueError(f"masked_grad.name is {masked_grad.name!r}, but must be zero or straight_through.")
    if masked_grad.sr_ste < 0.0:
        raise ValueError(f"masked_grad.sr_ste is {masked_grad.sr_ste}, but must be at least 0.")
    if masked_grad.sr_ste and masked_grad.name == "zero":
        raise ValueError(
            "masked_grad.sr_ste only acts with masked_grad.name=straight_through: set that, or sr_ste to 0."
        )
    return Kernels(criterion, masked_grad, mode)


@torch.no_grad()
def masked_sum_of_squares(
    grad: Tensor,  # (n,) fp32 or narrower
    keep: Tensor | None = None,  # (n,) uint8; None: all ones
) -> Tensor:  # () fp64, on grad's device
    """sum_i (M_i g_i)^2 in fp64, where the square of an fp32 is exact; the same whatever the number of threads.

    Squares add up column by column of a matrix with `size` columns, and the columns at the end: no sum is split.
    """
    size = min(CHUNK["cpu"] if grad.device.type == "cpu" else CHUNK_ACCELERATOR, grad.numel())
    narrow = torch.empty(size, dtype=torch.float32, device=grad.device)
    wide, total = (torch.zeros(size, dtype=torch.float64, device=grad.device) for _ in range(2))
    for at in range(0, grad.numel(), size or 1):
        part = grad.detach()[at : at + size]
        if keep is not None:
            part = narrow[: part.numel()].copy_(keep[at : at + size]).mul_(part)
        square = wide[: part.numel()].copy_(part)
        total[: part.numel()].addcmul_(square, square)
    while total.numel() > SUM_CHUNK:
        total = torch.stack([part.sum() for part in split(total, SUM_CHUNK)])
    return total.sum()


class SumOfSquares:
    """`masked_sum_of_squares`, compiled into one pass where the shards are large: 0.4 instead of 1.1 of an AdamW step.

    The compiled sum adds in another order: it differs from the eager one by roundings of fp64, which the one rounding
    to fp32 that follows hides.
    """

    def __init__(self, mode: str, numel: int) -> None:
        self.required = mode == "compile"
        self.compile = self.required or (mode == "auto" and numel > AUTO_COMPILE_FROM)

        def masked(grad: Tensor, keep: Tensor) -> Tensor:
            wide = (grad.float() * keep.to(torch.float32)).double()
            return (wide * wide).sum()

        def plain(grad: Tensor) -> Tensor:
            wide = grad.double()
            return (wide * wide).sum()

        self._masked, self._plain = compiled(masked, OPTIONS), compiled(plain, OPTIONS)

    @torch.no_grad()
    def __call__(self, grad: Tensor, keep: Tensor | None = None) -> Tensor:
        """() fp64: sum_i (M_i g_i)^2."""
        if self.compile and grad.numel() > 1:
            try:
                return self._plain(grad.detach()) if keep is None else self._masked(grad.detach(), keep)
            except Exception as error:
                if self.required:
                    raise
                _warn_once(error)
                self.compile = False
        return masked_sum_of_squares(grad, keep)


def _scalar(value: float) -> Tensor:
    """A 0-dim fp32 tensor: an argument of a compiled pass, where a float would be compiled in as a constant."""
    return torch.tensor(value, dtype=torch.float32)


def _chunks(tensors: tuple[Tensor, ...], numel: int) -> Any:
    """The flat tensors, piece by piece, the 0-dim ones whole."""
    device = next(t.device.type for t in tensors if t.dim())
    size = CHUNK[device] * torch.get_num_threads() if device in CHUNK else CHUNK_ACCELERATOR
    for at in range(0, numel, size):
        yield tuple(t[at : at + size] if t.dim() else t for t in tensors)


_warned = False


def _warn_once(error: Exception) -> None:
    """One line per process."""
    global _warned
    if not _warned:
        _warned = True
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        log.warning("Pruning kernels run in eager mode, about half as fast: compiling failed (%s).", reason)
