"""What is summed up between two logged lines, and whether the run has diverged."""

from __future__ import annotations

import time
from typing import Any

import torch

from pat import learning_rates
from pat.run.directory import HOST
from pat.training import divergence, hardware
from pat.training.learning_rate import lr_factor
from pat.training.state import Training
from pat.training.stragglers import Pace, SlowRanks


class Window:
    """Sums between two logged lines, on the device: nothing is read back before a line is written.

    To make one is collective.
    """

    def __init__(self, training: Training) -> None:
        self.training, self.progress, self.world = training, training.progress, training.world
        module, config = training.engine.module, training.config
        self.pace, self.slow_ranks = Pace(module), SlowRanks(self.world.gather(HOST))
        self.highest_lr = learning_rates.highest(config.optim, module)
        self.token_flops = hardware.flops_per_token(module, config.data.max_length)
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        self.devices = (device, config.engine.dtype, config.engine.world_size)
        self.reset()
        training.count = self.count

    def reset(self) -> None:
        """Start a new window."""
        training = self.training
        self.sums = torch.zeros(3, dtype=torch.float64, device=training.engine.device)  # loss, finite losses, tokens
        self.skipped = self.steps = 0
        self.started, self.aside_s = time.perf_counter(), training.aside_s
        self.seconds = 0.0  # of the window's steps
        self.counted = (0.0, 0.0)  # tokens and seconds of this window that progress has already
        self._watch_if_logged(self.progress.step + 1)

    def _is_logged(self, step: int) -> bool:
        train = self.training.config.train
        return step % train.log_every == 0 or step == train.num_steps

    def _watch_if_logged(self, step: int) -> None:
        if step <= self.training.config.train.num_steps and self._is_logged(step):
            self.pace.start()

    def add(self, loss: torch.Tensor, batch: dict[str, torch.Tensor]) -> None:
        """One forward. A loss that is not finite is not averaged: DeepSpeed skips its step."""
        finite = torch.isfinite(loss)
        self.sums[0] += torch.where(finite, loss, 0.0)
        self.sums[1] += finite
        self.sums[2] += batch["attention_mask"].sum() if "attention_mask" in batch else batch["input_ids"].numel()

    def step(self, stats: Any) -> None:
        """One optimizer step. Raises Diverged when too many have been skipped. Collective."""
        progress, bound = self.progress, self.training.bound
        self.steps += 1
        self.seconds = time.perf_counter() - self.started - (self.training.aside_s - self.aside_s)
        self.skipped += stats.skipped
        if not self._is_logged(progress.step):
            self._watch_if_logged(progress.step + 1)
        if bound.is_measured:
            said = bound.measure(self._totals()[0])
            if said:
                self.training.tracker.say(said)
        if stats.skipped:
            divergence.note_skipped(self.training.config, progress)

    def log(self, stats: Any) -> None:
        """Write a line. Raises Diverged when the mean loss is out of bounds. Collective."""
        training, progress, config, pruner = self.training, self.progress, self.training.config, self.training.pruner
        loss, tokens = self._totals()
        seconds = self.seconds = time.perf_counter() - self.started - (training.aside_s - self.aside_s)
        self._count(tokens)
        line = {
            "train/loss": loss,
            "train/grad_norm": float(stats.norm) if stats.norm is not None else None,
            "train/lr": self.highest_lr
            * lr_factor(progress.step - 1, config.train.num_steps, config.optim, pruner.cuts),
            "train/tokens_per_s": tokens / seconds,
            "train/mfu": hardware.mfu(tokens / seconds, self.token_flops, *self.devices),
            "train/step_seconds": seconds / self.steps,
            "train/skipped_steps": self.skipped,
            "train/skipped_steps_total": progress.skipped,
            "pruning/phase": pruner.phase(progress.step - 1),
            "pruning/sparsity": pruner.totals.sparsity,
            "pruning/target": pruner.totals.target_now(stats.target),
        }
        for name in stats.sparsity:
            line |= {f"pruning/{name}/sparsity": stats.sparsity[name], f"pruning/{name}/target": stats.target[name]}
        line |= {f"pruning/{key}": value for key, value in stats.figures.items()}
        line |= self._ranks(tokens / seconds)
        line |= training.objective.logged()
        training.tracker.log(line, progress.step)
        training.bound.refuse(loss)
        self.reset()

    def count(self) -> None:
        """Before a checkpoint: bring the tokens and seconds in progress up to the last step. Raises Diverged when the
        mean loss since the last line is out of bounds. Collective."""
        if self.steps:
            loss, tokens = self._totals()
            self.training.bound.refuse(loss)
            self._count(tokens)

    def _count(self, tokens: float) -> None:
        progress, (tokens_before, seconds_before) = self.progress, self.counted
        progress.tokens += tokens - tokens_before
        progress.train_seconds += self.seconds - seconds_before
        progress.peak_pruner_bytes = max(progress.peak_pruner_bytes, self.training.pruner.peak_bytes)
        self.counted = (tokens, self.seconds)

    def _ranks(self, tokens_per_s: float) -> dict[str, Any]:
        """Figures that differ between ranks: compute time of the last step, memory. Collective."""
        world, tracker = self.world, self.training.tracker
        mine = torch.zeros(2, world.world_size, dtype=torch.float64)
        mine[:, world.rank] = torch.tensor([self.pace.stop(), hardware.peak_memory_bytes()], dtype=torch.float64)
        seconds, memory = world.sum(mine.to(self.training.engine.device)).tolist()
        for sentence in self.slow_ranks.seen(seconds):
            tracker.warn("slow rank", sentence)
        slowest = max(range(world.world_size), key=seconds.__getitem__)
        return {
            "train/tokens_per_s_per_rank": tokens_per_s / world.world_size,
            "train/slowest_rank": slowest,
            "train/slowest_rank_forward_seconds": seconds[slowest],
            "train/forward_seconds_by_rank": seconds,
            "train/peak_memory_bytes": int(max(memory)),
            "train/peak_memory_bytes_by_rank": [int(n) for n in memory],
        }

    def _totals(self) -> tuple[float, float]:
        """(mean of the finite losses, tokens) over all ranks. Collective."""
        loss, finite, tokens = self.world.sum(self.sums).tolist()
        return loss / finite if finite else float("inf"), tokens
