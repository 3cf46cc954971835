"""Engines in this process, for checks that need no ranks: one without DeepSpeed, ZeRO 0 in fp32 as pat sees it, and
DeepSpeed's own of one rank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import HashStore  # type: ignore[attr-defined]

from pat.pruning.pruner import Pruner
from pat.schema import Config
from pat.zero import engine as ds


@contextmanager
def alone() -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def deepspeed_alone() -> Iterator[None]:
    """Inside `alone`: DeepSpeed takes this process for all of its ranks, and forgets its groups afterwards."""
    from deepspeed.comm import comm
    from deepspeed.utils import groups

    known: dict[str, Any] = groups.__dict__  # type: ignore[assignment]
    found, backend = dict(known), comm.cdb
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
            patch.setenv(key, value)
        comm.cdb = groups._WORLD_GROUP = None  # else DeepSpeed would go on with a process group that is gone
        try:
            yield
        finally:
            known.update(found)
            comm.cdb = backend


@contextmanager
def under_deepspeed() -> Iterator[None]:
    """`alone`, for engines of DeepSpeed's own."""
    with alone(), deepspeed_alone():
        yield


class PlainEngine:
    """What pat uses of DeepSpeed's engine, as pat sees it. Clips as DeepSpeed does: by the norm of all gradients."""

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, accumulation: int = 1, clipping: float = 0.0
    ) -> None:
        self.module, self.optimizer, self.basic_optimizer = module, optimizer, optimizer
        self.accumulation, self.clipping = accumulation, clipping
        self.device = torch.device("cpu")
        self.global_steps = self.global_samples = self.micro_steps = self.skipped_steps = 0
        self._global_grad_norm: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """Of a micro-batch."""
        (loss / self.accumulation).backward()

    def is_gradient_accumulation_boundary(self) -> bool:
        """Whether the next `step` is the optimizer's."""
        return (self.micro_steps + 1) % self.accumulation == 0

    def step(self) -> None:
        """Count a micro-batch; at the boundary the optimizer steps."""
        if self.is_gradient_accumulation_boundary():
            if self.clipping:
                nn.utils.clip_grad_norm_(self.module.parameters(), self.clipping)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.global_steps += 1
        self.micro_steps += 1

    def get_global_grad_norm(self) -> Any:
        """Of the last step."""
        return self._global_grad_norm

    def zero_optimization_stage(self) -> int:
        """None."""
        return 0

    def bfloat16_enabled(self) -> bool:
        """It is fp32."""
        return False

    def fp16_enabled(self) -> bool:
        """It is fp32."""
        return False

    def train_batch_size(self) -> int:
        """Sequences of a step."""
        return self.accumulation

    def train_micro_batch_size_per_gpu(self) -> int:
        """Sequences of a forward."""
        return 1

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """There are no files."""

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> tuple[None, dict[str, Any]]:
        """There is none."""
        return None, {}


def surround(pruner: Pruner, **given: Any) -> None:
    """Give a pruner's cuts samples, or other `Surroundings`; what is not named stays."""
    pruner.calibrator.surroundings = replace(pruner.calibrator.surroundings, **given)


def build(config: Config, model: nn.Module, accumulation: int = 1) -> tuple[PlainEngine, Pruner]:
    """pat's pruner on a plain engine, ready for step 0."""
    pruner = Pruner(config)
    pruner.attach(model)
    optimizer = ds.build_optimizer(ds.param_groups(model, config.optim, pruner.owner), config.optim)
    engine = PlainEngine(model, optimizer, accumulation)
    ds.set_lr(engine, 1.0)
    pruner.bind(engine)
    pruner.begin(0)
    return engine, pruner


def build_deepspeed(config: Config, model: nn.Module) -> tuple[Any, Pruner]:
    """pat's pruner on DeepSpeed's engine, ready for step 0; inside `deepspeed_alone`."""
    pruner = Pruner(config)
    pruner.attach(model)
    engine = ds.build_engine(config, model, pruner.owner, ds.deepspeed_config(config))
    ds.set_lr(engine, 1.0)
    pruner.bind(engine)
    pruner.begin(0)
    return engine, pruner
