"""Runs of the planted models that are more than pat's own loop: with a teacher, and attached to another trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import deepspeed
import torch
from torch import Tensor

from pat.integrations import attach
from pat.integrations.attach import Pruning
from pat.schema import DistillConfig
from pat.zero import engine as ds
from tests import formulas, planted
from tests.planted import Case

WEIGHT, TEMPERATURE, HIDDEN_WEIGHT = 0.6, 2.0, 0.05  # of the teacher's part of the loss, which rises over steps 1 to 4
START, END = 1, 4
LAYER_MAP = [1, 0, 2, 3]


def distillation(teacher: str) -> DistillConfig:
    """For pat."""
    return DistillConfig(
        teacher=teacher, weight=WEIGHT, temperature=TEMPERATURE, hidden_weight=HIDDEN_WEIGHT, layer_map=LAYER_MAP,
        start=START, end=END,
    )  # fmt: skip


def labelled(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A micro-batch as the task of language modelling takes it."""
    return {"input_ids": batch["input_ids"], "labels": batch["input_ids"]}


def taught_by(teacher: Any) -> Callable[[Any, dict[str, Tensor], int], Tensor]:
    """The combined loss, said naively."""

    def loss(forward: Any, batch: dict[str, Tensor], t: int) -> Tensor:
        due = min(1.0, max(0.0, (t - START) / (END - START)))
        with torch.no_grad():
            taught = teacher(input_ids=batch["input_ids"], output_hidden_states=True)
        answers = forward(input_ids=batch["input_ids"], output_hidden_states=True)
        return formulas.distillation_loss(
            answers, taught, batch["input_ids"], WEIGHT * due, TEMPERATURE, HIDDEN_WEIGHT * due, LAYER_MAP
        )

    return loss


def attach_to(case: Case, model: Any, **given: Any) -> Pruning:
    """The pruner on an engine that another trainer makes with such a DeepSpeed config; it clips by itself if it does
    not know better."""
    config = case.config()
    pruner = config.pruners["gates"]
    settings = {key: getattr(pruner, key) for key in ("structures", "gate", "budget", "schedule")}
    pruning = attach(model, {"pruners": {"gates": settings}, "kernels": "eager"}, num_steps=planted.STEPS)
    groups = [group | {"lr": case.lr} for group in ds.param_groups(model, config.optim, {})]
    optimizer = ds.build_optimizer(groups, config.optim)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config={"gradient_clipping": planted.MAX_NORM, **given}
    )
    assert pruning.engine is engine
    return pruning
