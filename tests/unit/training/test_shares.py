"""The loss of a step is a mean over all answers of its global batch, however it is cut into micro-batches and ranks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from pat.pruning.schedules import Ramp
from pat.schema import DistillConfig
from pat.tasks import base
from pat.tasks.causal_lm import IGNORED
from pat.training.distill import Distiller
from pat.training.objective import Objective
from tests import models as small
from tests.thread_ranks import run_ranks

RANKS, MICRO, ROWS, WIDTH = 2, 3, 2, 16


def chat_batch(even: bool = False) -> dict[str, Tensor]:
    """Rows of 3 to 16 tokens of which 1 to all are answers; even: the same of each in every row."""
    generator = torch.Generator().manual_seed(3)
    rows = RANKS * MICRO * ROWS
    ids = torch.randint(3, small.VOCAB, (rows, WIDTH), generator=generator)
    lengths = torch.randint(3, WIDTH + 1, (rows,), generator=generator)
    answers = (torch.rand(rows, generator=generator) * (lengths - 1)).int() + 1
    if even:
        lengths[:], answers[:] = WIDTH, 5
    place = torch.arange(WIDTH)
    mask = (place < lengths[:, None]).long()
    learned = (place < lengths[:, None]) & (place >= (lengths - answers)[:, None]) & (place > 0)
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.where(learned, ids, IGNORED)}


def cut(batch: dict[str, Tensor], rank: int) -> list[dict[str, Tensor]]:
    """The micro-batches of a rank."""
    firsts = [(micro * RANKS + rank) * ROWS for micro in range(MICRO)]
    return [{name: value[first : first + ROWS] for name, value in batch.items()} for first in firsts]


def averaged(
    model: Any, batch: dict[str, Tensor], task: Any, distiller: Any, global_mean: bool = True
) -> tuple[Tensor, list[Tensor]]:
    """(loss, gradients) as DeepSpeed makes them: the mean over micro-batches and ranks, each rank its own model."""
    models = [copy.deepcopy(model) for _ in range(RANKS)]

    def work(world: Any) -> Tensor:
        objective = Objective(models[world.rank], task, world, global_mean, copy.deepcopy(distiller))
        batches, total = cut(batch, world.rank), torch.zeros(())
        for each, shares in zip(batches, objective.shares(batches), strict=True):
            loss = objective.loss(each, 5, shares)
            (loss / MICRO).backward()
            total += loss.detach() / MICRO
        return total

    grads: Any
    losses, _ = run_ranks(RANKS, work)
    grads = [sum(p.grad for p in every) / RANKS for every in zip(*(m.parameters() for m in models), strict=True)]
    return torch.stack(losses).mean(), grads


def distiller_of(model: Any, task: Any, weight: float, hidden: float) -> Distiller:
    torch.manual_seed(1)
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    for param in teacher.parameters():
        param.data += 0.3 * torch.randn(param.shape)
    config = DistillConfig(teacher="t", weight=weight, temperature=2.0, hidden_weight=hidden)
    return Distiller(teacher, task, config, Ramp.of("distill", 0, None, 10), range(small.LAYERS) if hidden else [])


@pytest.mark.parametrize("chunk", [None, 5])
@pytest.mark.parametrize("distilled", [None, (0.6, 0.0), (0.6, 0.7), (0.0, 0.7)])
def test_uneven_answers_count_alike(distilled: tuple[float, float] | None, chunk: int | None) -> None:
    """Against the whole global batch as one micro-batch on one rank; means of means are far from it."""
    model, batch = small.model("llama"), chat_batch()
    task = base.build({"name": "chat", "loss_chunk_tokens": chunk})
    distiller = distiller_of(model, task, *distilled) if distilled else None
    whole = copy.deepcopy(model)
    expected = distiller.loss(whole, batch, 5) if distiller else task.loss(whole, batch)
    expected.backward()
    loss, grads = averaged(model, batch, task, distiller)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=0)
    for mine, param in zip(grads, whole.parameters(), strict=True):
        torch.testing.assert_close(mine, param.grad, rtol=1e-3, atol=1e-5)
    off, _ = averaged(model, batch, task, distiller, global_mean=False)
    assert abs(float(off / expected.detach()) - 1) > 1e-3


@pytest.mark.parametrize("distilled", [None, (0.6, 0.7)])
def test_even_answers_give_the_same_bits_as_before(distilled: tuple[float, float] | None) -> None:
    model, batch = small.model("llama"), chat_batch(even=True)
    task = base.build({"name": "chat"})
    distiller = distiller_of(model, task, *distilled) if distilled else None
    found = [averaged(model, batch, task, distiller, global_mean=on) for on in (True, False)]
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_where_all_counts_are_equal_nothing_is_sent() -> None:
    """Blocks of text and samples of a class: no collective a step."""
    nobody: Any = None
    for name, batch in (("causal_lm", chat_batch()), ("classification", {})):
        objective = Objective(None, base.build({"name": name}), nobody, global_mean=True)
        assert objective.shares([batch] * 3) == [(1.0, 1.0)] * 3
