"""Chunked losses on ranks: against the plain ones on every ZeRO stage, with batches of other lengths on each rank."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pat.tasks import base
from tests.distributed.distill_checks import Distilled, distilled, save_teacher
from tests.distributed.harness import STEPS, Trained, build, discard, from_rank_0, main, make_config
from tests.distributed.layouts import layouts

FP32: dict[str, Any] = {"engine__dtype": "fp32"}
UNTIED = {"zero3 untied": {"engine__zero_stage": 3, "model__config": {"tie_word_embeddings": False}}}
LAYOUTS = layouts("zero0", "zero1", "zero2 accumulation", "zero3 nothing persistent") | UNTIED
TAUGHT = ("zero2 accumulation", "zero3 nothing persistent")
CHUNK = 13  # tokens: ends within rows, and the ranks have other numbers of chunks


def narrowed(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """A batch whose width depends on the rank."""
    own = tokens[:, : tokens.shape[1] - 3 * dist.get_rank()]
    return {"input_ids": own, "labels": own}


class Plain(Trained):
    """Trains by a task's loss."""

    task: base.Task

    def loss(self, tokens: torch.Tensor, t: int) -> torch.Tensor:
        """Of step t."""
        return self.task.loss(self.engine, narrowed(tokens))


class Taught(Distilled):
    """Trains by a task's loss and a teacher."""

    def loss(self, tokens: torch.Tensor, t: int) -> torch.Tensor:
        """Of step t."""
        return self.distiller.loss(self.engine, narrowed(tokens), t)


def ended(trained: Trained) -> list[float]:
    """The norm of the first steps' gradients, the held-out loss at the end, and how often the ranks agree on it."""
    norms = []
    for t in range(STEPS):
        trained.run(t, t + 1)
        norms.append(float(trained.stats.norm))
    found = [*norms[:2], trained.held_out_loss()]
    discard(trained)
    return found


def checks(_: list[str]) -> dict[str, Any]:
    """{layout: [plain, chunked]}, and {layout with a teacher: [plain, chunked]}."""
    said: dict[str, Any] = {}
    every = [base.build({"name": "causal_lm", "loss_chunk_tokens": size}) for size in (None, CHUNK)]
    for layout, overrides in LAYOUTS.items():
        for task in every:
            built = build(make_config("movement", **FP32, **overrides))
            plain = Plain(built.config, built.engine, built.pruner)
            plain.task = task
            said.setdefault(layout, []).append(ended(plain))
    with tempfile.TemporaryDirectory() as folder:
        path = save_teacher(Path(from_rank_0(folder)), seed=1)
        for layout in TAUGHT:
            for task in every:
                built = distilled(path, 0.1, **FP32, **LAYOUTS[layout])
                built.distiller.task = task
                taught = Taught(built.config, built.engine, built.pruner, built.distiller)
                said.setdefault(f"{layout} with a teacher", []).append(ended(taught))
        dist.barrier()
    return said


if __name__ == "__main__":
    main(checks)
