"""One rank's modules are slow: who is named, and what the clock around the forward would have said."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from pat.training.divergence import LossBound
from pat.training.metrics import Window
from pat.training.progress import Progress
from pat.training.stragglers import WINDOWS
from tests.distributed import harness
from tests.distributed.harness import Trained, main

PAUSE_S = 0.05  # much longer than what another program may take from a rank
# Every module's weights are gathered when it begins: so each rank waits for the slow one again and again.
ONE_BY_ONE = {"zero_optimization": {"stage3_param_persistence_threshold": 0, "stage3_prefetch_bucket_size": 0}}


def slow_down(model: torch.nn.Module) -> None:
    """Each linear map of this rank takes PAUSE_S longer."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):

            def forward(input: torch.Tensor, plain: Any = module.forward) -> torch.Tensor:
                time.sleep(PAUSE_S)
                return plain(input)

            module.forward = forward


def watched(trained: Trained) -> dict[str, Any]:
    """WINDOWS logged steps with the loop's own window: lines, warnings, seconds of the forward by the clock."""
    lines: list[dict[str, Any]] = []
    warnings: list[str] = []
    tracker = SimpleNamespace(
        log=lambda line, step: lines.append(line), warn=lambda title, text: warnings.append(text), say=print
    )
    progress = Progress()
    training: Any = SimpleNamespace(
        config=trained.config,
        engine=trained.engine,
        pruner=trained.pruner,
        world=trained.pruner.layout.world,
        progress=progress,
        tracker=tracker,
        objective=SimpleNamespace(logged=dict),
        bound=LossBound(trained.config, progress, chance=100.0, worse=3.0),
        aside_s=0.0,
    )
    window, wall = Window(training), 0.0
    for t in range(WINDOWS):
        tokens = harness.batch(t, 0, trained.config)
        started = time.perf_counter()
        loss = trained.loss(tokens, t)
        wall += time.perf_counter() - started
        trained.engine.backward(loss)
        window.add(loss.detach(), {"input_ids": tokens})
        stats = trained.pruner.step(t)
        progress.step = t + 1
        window.step(stats)
        window.log(stats)
    walls = trained.pruner.layout.world.gather(wall)
    return {"lines": lines, "warnings": warnings, "walls": walls}


def checks(args: list[str]) -> dict[str, Any]:
    """Stage 1 and 3 with rank 1 slow, and stage 1 with nobody slower than the other."""
    found = {}
    for name, stage, slow in (("1", 1, [1]), ("3", 3, [1]), ("nobody", 1, [0, 1])):
        config = harness.make_config(
            "movement",
            engine__zero_stage=stage,
            engine__deepspeed=ONE_BY_ONE if stage == 3 else None,
            train__log_every=1,
            data__max_length=harness.SEQUENCE,
        )
        trained = harness.build(config)
        if dist.get_rank() in slow:
            slow_down(trained.engine.module)
        found[name] = watched(trained)
        harness.discard(trained)
    return found


if __name__ == "__main__":
    main(checks)
