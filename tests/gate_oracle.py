"""What pruning structures while training means, said naively: one process, whole weights, autograd, brute force.

Nothing of `pat.pruning` is used here, and every constant is written again. The model is a Llama without biases.

# L layers, H hidden size, K KV groups of g query heads each, d head dimension, n units of a structure in a layer,
# z gates, S scores, M keep flags (True = stays): (L, n) each, n = 1 where a layer or sublayer is one unit

Step t, from 0:

    M = the highest scores that the budget allows, if t is a selection step, from the evidence of earlier steps
    z moves towards M by at most 1 / fade in the soft phase; it is 1 in the dense one
    at the hard step M is chosen for the whole budget: what is gone becomes 0, and Adam's moments of it
    learned gates are sampled from logits in the soft phase, and what is kept is multiplied by its gate in the end
    loss of the model whose consuming weights are W * z;  W = AdamW(W, dL/dW clipped by its norm)
    S = the method's rule on dL/dz, or on what the forward has shown, until the hard phase
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tests.gate_choice import Shape, Units, choose
from tests.gate_forward import CONSUMER, Forward, Recorder, fold, scaled
from tests.gate_lagrangian import LEARNED, Learner, Options, temperature

BY_EXAMPLE = ("taylor", "fisher")  # methods that look at the gradient of each example's own loss
STATISTICS = ("activation", "similarity", "pair_similarity")  # methods that look at the forward, and not at dL/dz
DECAYS = {"taylor": 0.9, "fisher": 0.99, "activation": 0.9, "similarity": 0.9, "pair_similarity": 0.9}


@dataclass(frozen=True)
class Settings:
    """Of the optimizer and the pruning."""

    shape: Shape
    structures: tuple[str, ...]
    method: str
    budget: Mapping[str, Any]
    start: int
    end: int
    hard: int
    every: int = 1
    ramp: str = "cubic"  # cubic | one_shot
    initial: float = 0.0  # the share of the budget that is due where a cubic ramp starts
    fade: int = 10
    decay: float | None = None  # of the method's average; None: DECAYS
    learned: Options = Options()  # of l0 and smooth
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0  # of matrices
    max_norm: float = 0.0  # 0: no clipping


@dataclass(frozen=True)
class Record:
    """The state after one step; `z` is what multiplied in it, or what is in the weights."""

    step: int
    loss: float
    norm: float
    z: Units
    keep: Units
    scores: Units
    weights: dict[str, Tensor] = field(repr=False)


# -- the loop ----------------------------------------------------------------------------------------------------------


def run(
    model: nn.Module,
    loss_fn: Callable[[Forward, Any, int], Tensor],  # (gated model, micro-batch, step) -> scalar mean
    steps: Sequence[Sequence[Any]],  # for each step its micro-batches, of all ranks: their losses are averaged
    settings: Settings,
) -> list[Record]:
    """Train the model in place and record every step."""
    shape = settings.shape
    params = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in params.values() if p.dim() > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in params.values() if p.dim() <= 1], "weight_decay": 0.0},
        ],
        lr=settings.lr, betas=settings.betas, eps=settings.eps, foreach=False, fused=False,
    )  # fmt: skip
    ones = {name: torch.ones(shape.layers, shape.units(name)) for name in settings.structures}
    z, keep = dict(ones), {name: value.bool() for name, value in ones.items()}
    scores = {name: torch.zeros_like(value) for name, value in ones.items()}
    learner = None
    if settings.method in LEARNED:
        learner = Learner(shape, settings.budget, settings.structures, settings.method, settings.learned)
        scores = _logits(learner)
    records, history = [], []
    for t, micro_batches in enumerate(steps):
        if t == settings.hard:
            scores = _ranked(settings, params, scores)
            keep = _chosen(settings, learner.worth() if learner else scores, 1.0)
            final = _final(learner, settings) if learner else ones
            z = {name: flags * (final if name in CONSUMER else ones)[name] for name, flags in keep.items()}
            fold(shape, params, optimizer, z, keep, history)
        elif settings.start <= t < settings.hard and learner:
            if t == settings.start:
                learner.begin()
            z = learner.sample(t, _temperature(settings, t))
        elif settings.start <= t < settings.hard:
            if (t - settings.start) % settings.every == 0 or t == settings.end:
                scores = _ranked(settings, params, scores)
                keep = _chosen(settings, scores, progress(settings, t))
            for name, flags in keep.items():
                step = 1.0 / settings.fade
                z[name] = (z[name] + (flags.float() - z[name]).clamp(-step, step)).clamp(0.0, 1.0)

        multiplies = z if t < settings.hard else {name: flags.float() for name, flags in keep.items()}
        loss, shown, examples = _backward(model, params, multiplies, settings, loss_fn, micro_batches, t)
        norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in params.values() if p.grad is not None))
        if settings.max_norm and norm > settings.max_norm:
            for p in params.values():
                if p.grad is not None:
                    p.grad.mul_(settings.max_norm / (norm + 1e-6))
        optimizer.step()
        history.append(dict(z))
        if t < settings.hard and learner:
            grads = {name: torch.stack(parts).mean(0) for name, parts in shown.items()}
            sizes = {name: torch.stack(parts).abs().mean(0) for name, parts in examples.items()}
            if t < settings.start:
                learner.observe(grads, sizes)
            else:
                learner.step(grads, sizes, _temperature(settings, t), progress(settings, t))
            scores = _logits(learner)
        elif t < settings.hard and settings.method != "magnitude":
            seen = examples if settings.method in BY_EXAMPLE else shown
            scores = {name: update(settings, scores[name], seen[name]) for name in scores}
        weights = {name: p.detach().clone() for name, p in params.items()}
        records.append(Record(t, loss, norm, dict(z), dict(keep), dict(scores), weights))
    return records


def _logits(learner: Learner) -> Units:
    return {name: a.float() for name, a in learner.a.items()}


def _final(learner: Learner, settings: Settings) -> Units:
    mean = learner.mean(settings.learned.temperature)
    return {name: torch.where(z > 0, z, torch.ones_like(z)) for name, z in mean.items()}


def _temperature(settings: Settings, t: int) -> float:
    return temperature(settings.learned, t, settings.start, settings.hard)


def progress(settings: Settings, t: int) -> float:
    """The share of the budget that is due: 1 - (1 - initial) (1 - u)^3, or all at once."""
    if settings.ramp == "one_shot" or t >= settings.end:
        return 1.0
    left = (1.0 - (t - settings.start) / (settings.end - settings.start)) ** 3
    return 1.0 - (1.0 - settings.initial) * left


def _chosen(settings: Settings, scores: Units, due: float) -> Units:
    """Mean squares of weights and of activations mean something else in every structure."""
    comparable = settings.method not in ("magnitude", "activation")
    return choose(settings.shape, settings.budget, settings.structures, scores, comparable, due)


def _backward(
    model: nn.Module,
    params: dict[str, nn.Parameter],
    z: Units,
    settings: Settings,
    loss_fn: Callable[[Forward, Any, int], Tensor],
    micro_batches: Sequence[Any],
    t: int,
) -> tuple[float, dict[str, list[Tensor]], dict[str, list[Tensor]]]:
    """Gradients of the mean loss in W.grad. Returns the loss, and by structure what each micro-batch has shown, and
    each example."""
    for p in params.values():
        p.grad = None
    total, shown = 0.0, {name: [] for name in z}
    examples: dict[str, list[Tensor]] = {name: [] for name in z}
    for batch in micro_batches:
        leaves = {name: value.clone().requires_grad_() for name, value in z.items()}
        with Recorder(model, leaves.get("layers")) as recorder:
            effective = scaled(settings.shape, params, leaves)
            loss = loss_fn(lambda *a, **k: functional_call(model, effective, a, k), batch, t)  # noqa: B023
        (loss / len(micro_batches)).backward()
        total += loss.item() / len(micro_batches)
        for name, leaf in leaves.items():
            if settings.method in STATISTICS:
                counts = counted(batch)
                shown[name].append(torch.stack([counts.sum(), *_statistic(settings, recorder, params, name, counts)]))
            else:
                assert leaf.grad is not None
                shown[name].append(leaf.grad * len(micro_batches))  # of the micro-batch's own mean loss
        if settings.method in (*BY_EXAMPLE, *LEARNED) and t < settings.hard:  # later nothing is chosen
            for example in range(len(batch["input_ids"])):
                row = {key: value[example : example + 1] for key, value in batch.items()}
                grads = _example_gradients(model, params, z, settings, loss_fn, row, t)
                for name, grad in grads.items():
                    examples[name].append(grad)
    return total, shown, examples


def _example_gradients(
    model: nn.Module,
    params: dict[str, nn.Parameter],
    z: Units,
    settings: Settings,
    loss_fn: Callable[[Forward, Any, int], Tensor],
    row: Any,
    t: int,
) -> Units:
    """DL_b/dz of one example's own loss."""
    leaves = {name: value.clone().requires_grad_() for name, value in z.items()}
    with Recorder(model, leaves.get("layers")):
        effective = scaled(settings.shape, {name: p.detach() for name, p in params.items()}, leaves)
        loss = loss_fn(lambda *a, **k: functional_call(model, effective, a, k), row, t)
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


# -- evidence: one small function a rule -------------------------------------------------------------------------------


def counted(batch: Any) -> Tensor:
    """(b, s) 1 where a token counts in the statistics of the forward."""
    ids = batch["input_ids"]
    return batch.get("attention_mask", torch.ones_like(ids)).double()


def update(settings: Settings, score: Tensor, shown: Sequence[Tensor]) -> Tensor:
    """The score after a step that has shown this in each of its micro-batches, or examples."""
    method = settings.method
    if method == "movement":  # S - dL/dz, Lagunas et al. 2021
        return score - torch.stack(list(shown)).mean(0)
    if method == "taylor":  # the mean over examples of |dL_b/dz|, Molchanov et al. 2019
        return average(settings, score, torch.stack(list(shown)).abs().mean(0))
    if method == "fisher":  # the mean over examples of (dL_b/dz)^2, Kwon et al. 2022
        return average(settings, score, torch.stack(list(shown)).square().mean(0))
    assert method in STATISTICS
    total = torch.stack(list(shown)).sum(0)  # the number of tokens, then a sum for every unit
    means = (total[1:] / total[0]).float()
    if method == "pair_similarity":  # of a layer and the next, and of the last nothing: the mean of a layer's pairs
        pairs = [[means[j] for j in (i - 1, i) if 0 <= j < len(means) - 1] for i in range(len(means))]
        means = torch.stack([torch.stack(own).mean() for own in pairs])
    return average(settings, score, means.view_as(score))


def average(settings: Settings, score: Tensor, evidence: Tensor) -> Tensor:
    """Decay * S + (1 - decay) * E."""
    decay = DECAYS[settings.method] if settings.decay is None else settings.decay
    return decay * score + (1.0 - decay) * evidence


def _statistic(
    settings: Settings, recorder: Recorder, params: Mapping[str, Tensor], structure: str, counts: Tensor
) -> list[Tensor]:
    """Summed over the tokens that count, of every unit in turn: its squared norm, or 1 - cos of a layer."""
    found = []
    for i in range(settings.shape.layers):
        if structure == "layers":
            before, after = recorder.blocks[i]
            if settings.method == "pair_similarity" and i + 1 < settings.shape.layers:
                after = recorder.blocks[i + 1][1]
            if settings.method in ("similarity", "pair_similarity"):
                dots = (before * after).sum(-1) / (before.norm(dim=-1) * after.norm(dim=-1))
                found.append(((1.0 - dots).double() * counts).sum())
            else:
                found.append(((after - before).double().square().sum(-1) * counts).sum())
            continue
        module, columns = CONSUMER[structure]
        name = f"model.layers.{i}.{module}"
        x = recorder.inputs[name]
        if not columns:
            x = x @ params[f"{name}.weight"].detach().T
        parts = x.double().square().unflatten(-1, (settings.shape.units(structure), -1)).sum(-1)  # (b, s, n)
        found += list((parts * counts[..., None]).sum((0, 1)))
    return found


def _ranked(settings: Settings, params: Mapping[str, Tensor], scores: Units) -> Units:
    """The scores of a selection: for magnitude the mean square of all weights of a unit, now (Li et al. 2017)."""
    if settings.method != "magnitude":
        return scores
    found = {}
    for structure, old in scores.items():
        found[structure] = torch.empty_like(old)
        for i, unit in itertools.product(*map(range, old.shape)):
            owned = settings.shape.owned(structure, i, unit)
            parts = [
                params[name].detach().narrow(dim, start, min(stop, params[name].shape[dim]) - start).flatten()
                for name, dim, start, stop in owned
            ]
            found[structure][i, unit] = torch.cat(parts).double().square().mean()
    return found
