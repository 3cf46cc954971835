"""Schedulers made before deepspeed.initialize: every group follows them, as if there were no pruner."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from torch import nn
from torch.optim import lr_scheduler
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from pat.integrations.attach import Pruning
from pat.integrations.groups import follow, split_groups
from tests.sets import thinned
from tests.unit.integrations.test_integrations import given

STEPS = 30
PRUNING = Pruning(given(params=["0.weight", "2.weight"]))


class Cosine(lr_scheduler.LRScheduler):
    """One of the user's own, which keeps what torch's do not."""

    def __init__(self, optimizer: Any) -> None:
        self.scales = [0.5 + i for i, _ in enumerate(optimizer.param_groups)]
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        return [base * scale / (1 + self.last_epoch) for base, scale in zip(self.base_lrs, self.scales)]  # noqa: B905


def accelerated(optimizer: Any) -> Any:
    """A scheduler as Accelerate hands it back: stepped once per process, and only with its optimizer."""
    Accelerator(cpu=True)
    wrapped = AcceleratedOptimizer(optimizer, device_placement=False)
    inner = lr_scheduler.LambdaLR(optimizer, lambda t: min(1.0, (t + 1) / 8))
    return AcceleratedScheduler(inner, wrapped, step_with_optimizer=False)


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda t: min(1.0, (t + 1) / 8)),
    "a lambda for each group": lambda o: lr_scheduler.LambdaLR(o, [lambda t: 0.9**t, lambda t: 0.5**t]),
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, [0.1, 0.2], total_steps=STEPS + 1),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 1e-3, [0.1, 0.2], step_size_up=4, cycle_momentum=False),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 7),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, total_iters=5), lr_scheduler.ExponentialLR(o, 0.8)], milestones=[6]
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o, total_iters=5), lr_scheduler.StepLR(o, 9)]
    ),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=2, min_lr=[1e-4, 1e-5]),
    "linear warm-up of transformers": lambda o: get_linear_schedule_with_warmup(o, 8, STEPS),
    "cosine warm-up of transformers": lambda o: get_cosine_schedule_with_warmup(o, 8, STEPS),
    "under Accelerate": accelerated,
}


def lenient(*lists: Any, strict: bool = False) -> Any:
    """What zip over groups does in older versions of torch."""
    return builtins.zip(*lists, strict=False)


def optimizer_of(model: nn.Module, decayed: int) -> torch.optim.AdamW:
    """Two groups: some matrices, and the rest."""
    params = list(model.parameters())
    groups = [{"params": params[:decayed], "lr": 0.1}, {"params": params[decayed:], "lr": 0.02, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups)


def rates(kind: str, decayed: int, pruned: bool, make: Callable[[Any], Any]) -> list[list[Any]]:
    """Per step the rate and betas of each parameter, in the model's order."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 1))
    optimizer = optimizer_of(model, decayed)
    scheduler, origins = make(optimizer), None
    if pruned:
        PRUNING.model = model
        PRUNING.prepare({"model": model, "optimizer": optimizer, "config": {}})
        origins = PRUNING._origins
        assert len(optimizer.param_groups) > 2
    found = []
    for _ in range(STEPS):
        model(torch.ones(1, 4)).sum().backward()
        if origins is not None:
            follow(optimizer.param_groups, origins)  # as the engine's step does
        optimizer.step()
        of = {id(p): (float(g["lr"]), g["betas"]) for g in optimizer.param_groups for p in g["params"]}
        found.append([of[id(p)] for p in model.parameters()])
        scheduler.step(*([1.0] if kind == "plateau" else []))
    return found


@pytest.mark.parametrize(("strict", "decayed"), [(True, 3), (False, 1)])
@pytest.mark.parametrize("kind", thinned(SCHEDULERS, 2))
def test_every_group_follows_the_schedule(
    kind: str, strict: bool, decayed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strict as torch 2.13's zip over groups is, and as older ones that leave out what is too much."""
    if not strict:
        monkeypatch.setattr(lr_scheduler, "zip", lenient, raising=False)
    plain, pruned = (rates(kind, decayed, pruned, SCHEDULERS[kind]) for pruned in (False, True))
    assert pruned == plain
    assert len({str(line) for line in plain}) > 3


def test_lists_that_pat_does_not_know_are_followed_where_zip_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lr_scheduler, "zip", lenient, raising=False)
    assert rates("own", 3, True, Cosine) == rates("own", 3, False, Cosine)


def test_the_scheduler_of_an_optimizer_that_another_took_the_place_of_drives_the_groups() -> None:
    """As Accelerate makes DeepSpeed's CPU Adam of the user's groups: the rate stayed what it was, 0 with a warm-up."""
    model = nn.Linear(2, 2)
    users = torch.optim.AdamW(model.parameters(), 0.1)
    scheduler = lr_scheduler.LambdaLR(users, lambda t: t / 4)
    optimizer = torch.optim.AdamW(users.param_groups)
    pruning = Pruning(given(params=["weight"]))
    pruning.model = model
    pruning.prepare({"model": model, "optimizer": optimizer, "config": {}})
    found = []
    for _ in range(3):
        follow(optimizer.param_groups, pruning._origins)
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        users.step()
        scheduler.step()
    assert found == [[0.0, 0.0], [0.025, 0.025], [0.05, 0.05]]
    pruning.put_back()
    assert [len(group["params"]) for group in users.param_groups] == [2], "a second attempt finds all of them"


def test_frozen_parameters_have_no_group_of_their_own() -> None:
    """In which DeepSpeed would find nothing to train, and fail."""
    a, b, c = (torch.nn.Parameter(torch.zeros(n), requires_grad=n != 2) for n in (1, 2, 3))
    found, origins = split_groups([{"params": [a, b, c]}, {"params": [b]}], {id(a): "weights", id(c): "others"})
    assert [[id(p) for p in group["params"]] for group in found] == [[id(b), id(c)], [id(b)], [id(a)]]
    assert origins == [0, 1, 0]


def test_a_scheduler_of_another_optimizer_stays_as_it_is() -> None:
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer, its = (torch.optim.AdamW(m.parameters(), 0.1) for m in (model, other))
    scheduler = lr_scheduler.LambdaLR(its, lambda t: 0.5)
    pruning = Pruning(given(params=["weight"]))
    pruning.model = model
    pruning.prepare({"model": model, "optimizer": optimizer, "config": {}})
    assert len(optimizer.param_groups) == 2 and len(scheduler.base_lrs) == 1


def test_groups_are_split_by_pruner_and_keep_their_settings_and_numbers() -> None:
    a, b, c = (torch.nn.Parameter(torch.zeros(n)) for n in (1, 2, 3))
    groups = [{"params": [a, b], "lr": 0.1, "weight_decay": 0.5}, {"params": [c], "lr": 0.2, "weight_decay": 0.0}]
    found, origins = split_groups(groups, {id(a): "weights", id(b): "", id(c): ""})
    assert [[id(p) for p in group["params"]] for group in found] == [[id(b)], [id(c)], [id(a)]]
    assert [(group["lr"], group["weight_decay"]) for group in found] == [(0.1, 0.5), (0.2, 0.0), (0.1, 0.5)]
    assert origins == [0, 1, 0]


def test_groups_may_be_empty_a_tensor_or_a_generator() -> None:
    """As torch and DeepSpeed take them; DeepSpeed drops empty ones, which an optimizer for some layers only has."""
    a, b, c = (torch.nn.Parameter(torch.zeros(n)) for n in (1, 2, 3))
    groups = [{"params": [], "lr": 0.1}, {"params": c, "lr": 0.2}, {"params": (p for p in (a, b)), "lr": 0.3}]
    found, origins = split_groups(groups, {id(a): "weights", id(b): "", id(c): ""})
    assert [[id(p) for p in group["params"]] for group in found] == [[id(c)], [id(b)], [id(a)]]
    assert origins == [1, 2, 2]
    found[0]["lr"], found[1]["lr"] = 0.02, 0.03
    follow(found, origins)
    assert [group["lr"] for group in found] == [0.02, 0.03, 0.03]


def test_a_scheduler_made_with_an_empty_group_goes_on_without_it() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW([{"params": [], "lr": 0.1}, {"params": list(model.parameters()), "lr": 0.02}])
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda t: 0.5**t)
    PRUNING.model = model
    PRUNING.prepare({"model": model, "optimizer": optimizer, "config": {}})
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.01]
