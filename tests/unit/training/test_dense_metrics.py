"""What `dense_metrics` is measured on: a model on which no gate or mask has been in force."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pat import train
from pat.common.comm import LOCAL
from pat.pruning.pruner import Pruner, StepStats
from pat.schema import Config, PrunerConfig
from pat.training.progress import Progress
from pat.training.state import Training
from tests import models as small
from tests.unit.pruning.structures.test_gates import cut_flat, loss

SCHEDULES = {
    "from the start": {"name": "linear", "start": 0, "end": 4, "initial": 0.2},
    "one shot": {"name": "one_shot", "start": 3},
    "one shot from the start": {"name": "one_shot", "start": 0},
    "a jump at the start": {"name": "cubic", "start": 2, "end": 4, "hard_from": 5, "initial": 0.2},
    "gradual": {"name": "linear", "start": 2, "end": 4, "hard_from": 5},
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=list(SCHEDULES))
def test_the_dense_model_is_measured_before_anything_is_pruned(
    schedule: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gates that begin at the end of the step before would be measured half closed, or folded."""
    model, ids = small.model("llama"), small.tokens()
    with torch.no_grad():
        dense = float(loss(model, ids))
    narrow = PrunerConfig(
        structures=["ffn"], gate={"name": "magnitude", "fade": 1}, schedule=schedule,
        budget={"name": "parameters", "sparsity": 0.3, "multiple_of": 1},
    )  # fmt: skip
    config = Config().changed(train__num_steps=8, pruners__narrow=narrow)
    pruner = Pruner(config)
    pruner.attach(model)
    structure_pruner = pruner.structure_pruners[0]
    (layout,) = cut_flat(model, 1)
    layout.world, layout.device, layout.refresh_forward = LOCAL, torch.device("cpu"), lambda: None
    layout.base = SimpleNamespace(state=defaultdict(dict), param_groups=[{"betas": (0.9, 0.999)}])
    structure_pruner.bind(layout)

    def step(training: Any, window: Any, t: int) -> None:
        assert not structure_pruner.state.hardened or t >= structure_pruner.timeline.hard_from
        structure_pruner.learn(t, skipped=False)
        if t + 1 != pruner.first_soft_step:
            pruner.begin(t + 1)
        training.progress.step = t + 1

    def evaluate(training: Any, title: str = "eval") -> Any:
        assert (
            structure_pruner.num_pruned == 0
            and not structure_pruner.hardened
            and bool((structure_pruner.state.z == 1.0).all())
        )
        with torch.no_grad():
            return SimpleNamespace(metrics={"loss": float(loss(model.eval(), ids))}, slices=None)

    monkeypatch.setattr(train, "Window", lambda training: None)
    for name, stand_in in (("step", step), ("evaluate", evaluate)):
        monkeypatch.setattr(train, name, stand_in)
    for name in ("evaluate_if_due", "finish"):
        monkeypatch.setattr(train, name, lambda training: None)
    training: Any = SimpleNamespace(
        progress=Progress(), pruner=pruner, config=config, agree=lambda due: (False, False),
        due=SimpleNamespace(checkpoint=lambda cut_next: False, early_stop=lambda: False), guard=None,
    )  # fmt: skip
    training.begins = partial(Training.begins, training)
    if pruner.first_soft_step != 0:
        pruner.begin(0)
    train.fit(training)
    assert (
        training.progress.dense_metrics == {"loss": dense}
        and training.progress.dense_step == structure_pruner.timeline.start
    )
    assert structure_pruner.hardened and structure_pruner.sparsity > 0.0


def test_the_loop_holds_the_gates_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real step of the loop: the step before pruning does not begin the next one, all others do."""
    begun: list[int] = []

    def pruner_step(t: int, begin_next: bool = True) -> StepStats:
        begun.extend([t + 1] if begin_next else [])
        return StepStats(skipped=False, norm=0.0)

    monkeypatch.setattr(train, "set_lr", lambda *_: None)
    quiet = SimpleNamespace(backward=lambda _: None, step=lambda: None)
    config = Config().changed(train__num_steps=8, optim__lr=1.0)
    training: Any = SimpleNamespace(
        config=config, progress=Progress(), engine=quiet, world=LOCAL,
        feed=SimpleNamespace(batches=lambda t: [None]),
        objective=SimpleNamespace(
            shares=lambda batches: [(1.0, 1.0)], loss=lambda batch, t, shares: torch.zeros(())
        ),
        pruner=SimpleNamespace(step=pruner_step, first_soft_step=3, cuts=()),
        tracker=SimpleNamespace(advance=lambda _: None), guard=None,
    )  # fmt: skip
    training.begins = partial(Training.begins, training)
    window: Any = SimpleNamespace(add=lambda *_: None, step=lambda _: None, log=lambda _: None)
    for t in range(6):
        train.step(training, window, t)
    assert begun == [1, 2, 4, 5, 6]


@pytest.mark.parametrize(("hardened", "saved_step"), [(False, -1), (True, 0)])
def test_a_run_of_no_steps_that_was_stopped_prunes_and_saves_what_it_pruned(
    hardened: bool, saved_step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that was stopped in its first evaluation has saved the dense model: that checkpoint must not count as
    the pruned one's. A start that was stopped after the cut has saved the pruned model."""
    done: list[str] = []
    monkeypatch.setattr(train, "Window", lambda training: None)
    monkeypatch.setattr(train, "evaluate_if_due", lambda training: None)
    found = SimpleNamespace(metrics={"loss": 1.0}, slices=None)
    monkeypatch.setattr(train, "evaluate", lambda training, title: done.append(title) or found)
    monkeypatch.setattr(train, "finish", lambda training: done.append("finish"))
    only = SimpleNamespace(hardened=hardened)

    def prune() -> None:
        done.append("prune")
        only.hardened = True

    training: Any = SimpleNamespace(
        config=Config().changed(train__num_steps=0), progress=Progress(saved_step=0), due=None,
        pruner=SimpleNamespace(prune=prune, pruners=[only], first_soft_step=0), guard=None,
    )  # fmt: skip
    train.fit(training)
    assert done == ["dense", "prune", "finish"] and training.progress.saved_step == saved_step
