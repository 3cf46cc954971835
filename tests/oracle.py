"""What pruning while training means, said naively: one process, whole parameters, autograd, a sort.

No shards, no kernels, no selection of `pat` is used here; only the schedule's timeline. Step t, with S the scores, W
the dense weights, M the masks (1 = lives), G = dL/d(W * M) clipped by its norm over living weights:

    M = the highest ranks, if t is a selection step, from the evidence of earlier steps
    S = S - rate * dL/dS, dL/dS = G * W through the straight-through mask;  W = AdamW(W, G * M), decay on living weights
    at the hard step W = W * M before that, and Adam's moments of dead weights are 0
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from pat.pruning.schedules import Timeline

Forward = Callable[..., Any]  # the model's forward, with effective weights


@dataclass(frozen=True)
class Settings:
    """Of the optimizer and the pruning."""

    sparsity: float
    criterion: str = "movement"  # magnitude | movement | soft_movement | taylor
    scope: str = "global"  # global | matrix
    lr: float | Callable[[int], float] = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0  # of matrices
    max_norm: float = 0.0  # 0: no clipping
    prior: float | None = 0.0  # of both movements: a constant times W^2, or from the sizes of W^2 and S
    prior_steps: float = 20_000.0  # of the latter
    rate: float = 1.0  # of soft movement's evidence
    tau: float = 0.1  # soft movement's threshold
    penalty: Callable[[float], float] = lambda progress: 0.0  # soft movement's lambda
    decay: float = 0.99  # of Taylor's average


@dataclass(frozen=True)
class Record:
    """The state after one step."""

    step: int
    loss: float
    norm: float  # of the masked gradient, before clipping
    masks: dict[str, Tensor]  # bool, shape of the parameter; pruned parameters
    weights: dict[str, Tensor]  # effective, all trainable parameters
    scores: dict[str, Tensor]  # as of the last step before the hard phase


class StraightThroughMask(torch.autograd.Function):
    """W * M, whose backward hands dL/d(W * M) to W, at masked weights too, and its product with W to S."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, score: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return weight * mask

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (weight,) = ctx.saved_tensors
        return grads[0], grads[0] * weight, None


def run(
    model_fn: Callable[[], nn.Module],
    loss_fn: Callable[[Forward, Any], Tensor],  # (forward, micro-batch) -> scalar mean
    steps: Iterable[Sequence[Any]],  # for each step its micro-batches, of all ranks: their losses are averaged
    pruned: Sequence[str],  # parameter names
    timeline: Timeline,
    settings: Settings,
) -> list[Record]:
    """Train a fresh model and record every step."""
    model = model_fn()
    params = {n: p for n, p in model.named_parameters() if p.requires_grad}
    pruned = sorted(pruned)
    start = settings.prior or 0.0
    scores = {n: (start * params[n].detach().square()).requires_grad_() for n in pruned}
    masks = {n: torch.ones_like(params[n]) for n in pruned}
    matrices = [p for n, p in params.items() if n not in pruned and p.dim() > 1]
    vectors = [p for n, p in params.items() if n not in pruned and p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": [params[n] for n in pruned], "weight_decay": settings.weight_decay},
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=1.0,
        betas=settings.betas,
        eps=settings.eps,
        foreach=False,
        fused=False,
    )
    records = []
    for t, micro_batches in enumerate(steps):
        lr = settings.lr(t) if callable(settings.lr) else settings.lr
        for group in optimizer.param_groups:
            group["lr"] = lr

        loss = _backward(model, params, scores, masks, loss_fn, micro_batches)
        norm = _clip(params, scores, masks, settings.max_norm)

        phase = timeline.phase(t)
        with torch.no_grad():
            if timeline.is_selection_step(t):
                masks = _select(params, scores, timeline, t, settings)
            if t == timeline.hard_from:
                for name in pruned:
                    params[name].mul_(masks[name])
                    for key in ("exp_avg", "exp_avg_sq"):
                        if optimizer.state[params[name]]:
                            optimizer.state[params[name]][key].mul_(masks[name])
            for name in pruned:
                if phase != "hard":
                    _evidence(params[name], scores[name], timeline.progress(t), settings)
                grad = params[name].grad
                assert grad is not None
                if phase != "dense":
                    grad.mul_(masks[name])
                if phase == "soft":
                    params[name].mul_(1.0 - lr * settings.weight_decay * masks[name])
        optimizer.param_groups[0]["weight_decay"] = 0.0 if phase == "soft" else settings.weight_decay
        optimizer.step()

        weights = {n: (p * masks[n] if n in masks else p).detach().clone() for n, p in params.items()}
        records.append(
            Record(
                step=t,
                loss=loss,
                norm=norm,
                masks={n: m.bool() for n, m in masks.items()},
                weights=weights,
                scores={n: s.detach().clone() for n, s in scores.items()},
            )
        )
    return records


def _backward(
    model: nn.Module,
    params: dict[str, nn.Parameter],
    scores: dict[str, Tensor],
    masks: dict[str, Tensor],
    loss_fn: Callable[[Forward, Any], Tensor],
    micro_batches: Sequence[Any],
) -> float:
    """Gradients of the mean loss: dL/d(W * M) in W.grad, dL/dS in S.grad. Returns the loss."""
    for leaf in (*params.values(), *scores.values()):
        leaf.grad = None
    total = 0.0
    for batch in micro_batches:
        effective = {n: StraightThroughMask.apply(params[n], scores[n], masks[n]) for n in masks}

        def forward(*args: Any, effective: dict[str, Any] = effective, **kwargs: Any) -> Any:
            return functional_call(model, effective, args, kwargs)

        loss = loss_fn(forward, batch) / len(micro_batches)
        loss.backward()
        total += loss.item()
    return total


def _clip(params: dict[str, nn.Parameter], scores: dict[str, Tensor], masks: dict[str, Tensor], limit: float) -> float:
    """Scale all gradients by the norm that the living weights have."""
    squares = 0.0
    for name, param in params.items():
        if param.grad is not None:
            grad = param.grad * masks[name] if name in masks else param.grad
            squares += float(grad.double().square().sum())
    norm = math.sqrt(squares)
    if limit and norm > limit:
        for leaf in (*params.values(), *scores.values()):
            if leaf.grad is not None:
                leaf.grad.mul_(limit / (norm + 1e-6))
    return norm


def _evidence(weight: Tensor, score: Tensor, progress: float, settings: Settings) -> None:
    """One step of the score, in place."""
    assert score.grad is not None
    if settings.criterion == "movement":
        score.sub_(score.grad)
    elif settings.criterion == "soft_movement":
        sigma = torch.sigmoid(score)
        score.sub_(settings.rate * score.grad + settings.penalty(progress) * sigma * (1.0 - sigma))
    elif settings.criterion == "taylor":
        score.copy_(settings.decay * score + (1.0 - settings.decay) * score.grad.abs())
    else:
        assert settings.criterion == "magnitude"


def _add_prior(ranks: dict[str, Tensor], squares: dict[str, Tensor], weight: float) -> None:
    """S + c W^2, where c makes the mean of c W^2 `weight` times RMS(S), and has 8 binary digits."""
    both = ([of[n].double().flatten() for n in squares] for of in (ranks, squares))
    score, square = (torch.cat(list(each)) for each in both)
    c = weight * float(score.square().mean()) ** 0.5 / float(square.mean()) if score.any() else 1.0
    digits = 2.0 ** (math.floor(math.log2(c)) - 7)
    for name, own in squares.items():
        ranks[name] = ranks[name] + own * (round(c / digits) * digits)


def _select(
    params: dict[str, nn.Parameter], scores: dict[str, Tensor], timeline: Timeline, t: int, settings: Settings
) -> dict[str, Tensor]:
    """The masks that a sort of all ranks gives; equal ranks: the lower index, in name order and row-major, lives."""
    ranks = {
        n: params[n].detach().abs() if settings.criterion == "magnitude" else s.detach() for n, s in scores.items()
    }
    by_threshold = settings.criterion == "soft_movement" and t < timeline.hard_from
    if settings.criterion in ("movement", "soft_movement") and settings.prior is None and not by_threshold:
        groups = [list(ranks)] if settings.scope == "global" else [[n] for n in ranks]
        for names in groups:
            _add_prior(ranks, {n: params[n].detach().square() for n in names}, settings.prior_steps / t)
    if by_threshold:
        return {n: (torch.sigmoid(r) > settings.tau).to(r.dtype) for n, r in ranks.items()}
    target = timeline.target(t, settings.sparsity)
    groups = [list(ranks)] if settings.scope == "global" else [[n] for n in ranks]
    masks = {}
    for names in groups:
        flat = np.concatenate([ranks[n].numpy().reshape(-1) for n in names])
        removed = int((Decimal(repr(target)) * flat.size + Decimal("0.5")).to_integral_value(ROUND_FLOOR))
        order = np.argsort(-flat, kind="stable")
        keep = np.zeros(flat.size, dtype=np.float32)
        keep[order[: flat.size - removed]] = 1.0
        for name, part in zip(names, np.split(keep, np.cumsum([ranks[n].numel() for n in names])[:-1]), strict=True):
            masks[name] = torch.from_numpy(part.reshape(ranks[name].shape).copy())
    return masks
