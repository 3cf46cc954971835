"""The loop. Everything that it needs is put together in `pat.build`; everything that it does stands below."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pat import build, checkpoint
from pat.build import Parts, prepare
from pat.checkpoint_reader import CheckpointError
from pat.engine import lr_factor, set_lr
from pat.pruning.masks import PromiseBroken
from pat.run import ExitCode, write_exit

SKIPPED_IN_A_ROW = 25  # skipped steps after which a run counts as diverged; fp16 loss scaling skips fewer
EXPLODED = 10.0  # default of train.max_loss, as a multiple of the first logged loss


__all__ = ["main", "prepare"]


class Diverged(RuntimeError):
    """The loss is NaN, infinite or out of bounds."""


class Preempted(RuntimeError):
    """Somebody asked the run to save and leave."""


def main(run_dir: Path) -> int:
    """Train as one rank of the run frozen in `run_dir`; returns the exit code that all ranks agree on."""
    parts = build.build(run_dir)
    try:
        fit(parts)
        code, message = ExitCode.DONE, ""
    except Preempted as stop:
        code, message = ExitCode.PREEMPTED, str(stop)
    except Diverged as stop:
        code, message = ExitCode.DIVERGED, str(stop)
    except (PromiseBroken, CheckpointError) as stop:
        code, message = ExitCode.BROKEN_PROMISE, str(stop)
    parts.tracker.close(message)
    if parts.world.rank == 0:
        write_exit(run_dir, code, message)
    return code


def fit(parts: Parts) -> None:
    """Train from where the run stands to its last step, then evaluate, check, save and sum up."""
    config, progress, pruner, train = parts.config, parts.progress, parts.pruner, parts.config.train
    window = Window(parts)
    for t in range(progress.step, train.num_steps):
        if t == (pruner.first_soft_step or 0) and progress.dense_metrics is None:
            progress.dense_metrics = evaluate(parts, "dense")
        set_lr(parts.engine, lr_factor(t, train.num_steps, config.optim))
        for micro in range(parts.accumulation):
            torch.manual_seed(_seed(config.seed, t, micro, parts.world.rank))  # dropout: a function of the step
            batch = parts.loader.batch(t, micro)
            loss = parts.task.loss(parts.engine, batch)
            parts.engine.backward(loss)
            if micro + 1 < parts.accumulation:
                parts.engine.step()
            window.add(loss.detach(), batch)
        stats = pruner.step(t)
        progress.step = t + 1
        window.step(stats)
        parts.tracker.advance(progress.step)
        if progress.step % train.log_every == 0 or progress.step == train.num_steps:
            window.log(stats)
        if train.eval_every and progress.step % train.eval_every == 0 and progress.step < train.num_steps:
            progress.metrics = evaluate(parts)
            if parts.is_best(progress.metrics):
                save(parts, best=True)
        stop, due = parts.agree(parts.flag.requested, parts.checkpoint_due())
        if stop:
            leave(parts)
        if due and progress.saved_step != progress.step:
            save(parts)
    finish(parts)


def evaluate(parts: Parts, title: str = "eval") -> dict[str, float]:
    """Metrics on the held-out split, the same on every rank. Collective; a request to stop ends it."""
    started = time.perf_counter()
    parts.engine.eval()

    def batches() -> Iterator[Any]:
        for batch in parts.eval_batches():
            if parts.agree(parts.flag.requested, False)[0]:
                parts.engine.train()
                leave(parts)
            yield batch

    with torch.no_grad():
        sums = parts.task.evaluate(parts.engine, batches(), parts.engine.device)
    parts.engine.train()
    metrics = parts.task.metrics(parts.world.sum(sums))
    parts.tracker.log(
        {f"{title}/{k}": v for k, v in metrics.items()} | {f"{title}/seconds": time.perf_counter() - started},
        parts.progress.step,
    )
    return metrics


def leave(parts: Parts) -> None:
    """Save and raise Preempted. Collective."""
    if parts.progress.saved_step != parts.progress.step:
        save(parts)
    raise Preempted(f"stopped on request at step {parts.progress.step}, all saved: run the same command to go on")


def save(parts: Parts, best: bool = False) -> None:
    """A checkpoint of what has been done so far. Collective."""
    progress, root = parts.progress, parts.run.checkpoints
    progress.saved_step = progress.step
    path, seconds, size = checkpoint.timed(
        lambda: checkpoint.save(
            parts.engine, parts.pruner, root, progress.step, progress.as_dict(), progress.metrics or {}
        )
    )
    progress.save_seconds = seconds
    if parts.world.rank == 0:
        if best:
            checkpoint.set_best(root, path)
        checkpoint.retain(root, parts.config.train.keep_last)
    parts.world.barrier()
    parts.tracker.log({"checkpoint/seconds": seconds, "checkpoint/bytes": size}, progress.step)


def finish(parts: Parts) -> None:
    """Last evaluation, all guarantees, last checkpoint, summary."""
    parts.pruner.check_finished()
    parts.progress.metrics = evaluate(parts)
    save(parts, best=parts.is_best(parts.progress.metrics))
    parts.tracker.summary(build.summary(parts))


def _seed(seed: int, t: int, micro: int, rank: int) -> int:
    return hash((seed, t, micro, rank)) & 0x7FFF_FFFF_FFFF_FFFF


class Window:
    """Sums between two logged lines, on the device: nothing is read back before a line is written."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.skipped_in_a_row = 0
        self.reset()

    def reset(self) -> None:
        """Start a new window."""
        self.sums = torch.zeros(3, dtype=torch.float64, device=self.parts.engine.device)  # loss, finite losses, tokens
        self.skipped = self.steps = 0
        self.started = time.perf_counter()

    def add(self, loss: torch.Tensor, batch: dict[str, torch.Tensor]) -> None:
        """One forward. A loss that is not finite is not averaged: DeepSpeed skips its step."""
        finite = torch.isfinite(loss)
        self.sums[0] += torch.where(finite, loss, 0.0)
        self.sums[1] += finite
        self.sums[2] += batch["attention_mask"].sum() if "attention_mask" in batch else batch["input_ids"].numel()

    def step(self, stats: Any) -> None:
        """One optimizer step. Raises Diverged when none has been applied for long."""
        self.steps += 1
        self.skipped += stats.skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if stats.skipped else 0
        if self.skipped_in_a_row >= SKIPPED_IN_A_ROW:
            raise Diverged(
                f"{SKIPPED_IN_A_ROW} steps in a row had an infinite or NaN gradient, the last at step "
                f"{self.parts.progress.step}; lower optim.lr, or start again from the last checkpoint"
            )

    def log(self, stats: Any) -> None:
        """Write a line. Raises Diverged when the mean loss is out of bounds. Collective."""
        parts, progress = self.parts, self.parts.progress
        loss_sum, finite, tokens = parts.world.sum(self.sums).tolist()
        seconds = time.perf_counter() - self.started
        loss = loss_sum / finite if finite else float("inf")
        progress.tokens += tokens
        progress.train_seconds += seconds
        progress.peak_pruner_bytes = max(progress.peak_pruner_bytes, parts.pruner.peak_bytes)
        progress.first_loss = loss if progress.first_loss is None else progress.first_loss
        line = {
            "train/loss": loss,
            "train/grad_norm": float(stats.norm) if stats.norm is not None else None,
            "train/lr": lr_factor(progress.step - 1, parts.config.train.num_steps, parts.config.optim)
            * parts.config.optim.lr,
            "train/tokens_per_s": tokens / seconds,
            "train/step_seconds": seconds / self.steps,
            "train/skipped_steps": self.skipped,
            "train/peak_memory_bytes": build.peak_memory_bytes(),
            "pruning/phase": parts.pruner.phase(progress.step - 1),
            "pruning/sparsity": parts.pruner.sparsity,
        }
        for name in stats.sparsity:
            line |= {f"pruning/{name}/sparsity": stats.sparsity[name], f"pruning/{name}/target": stats.target[name]}
        parts.tracker.log(line, progress.step)
        limit = parts.config.train.max_loss or EXPLODED * max(progress.first_loss, 1.0)
        if not loss <= limit:
            raise Diverged(
                f"the loss is {loss:.4g} at step {progress.step}, above {limit:.4g} (train.max_loss); lower optim.lr"
            )
        self.reset()
