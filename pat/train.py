"""The loop. Everything that it needs is put together in `pat.build`; everything that it does stands below."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pat import build, checkpoint, retention, seeds
from pat.build import prepare
from pat.engine import lr_factor, set_lr
from pat.parts import Parts
from pat.pruning.types import PromiseBroken
from pat.run import ExitCode, write_exit
from pat.window import Diverged, Window

__all__ = ["main", "prepare"]


class Preempted(RuntimeError):
    """Somebody asked the run to save and leave."""


class NotEvaluated(RuntimeError):
    """What has been trained is saved, but its evaluation has failed."""

    def __init__(self, step: int, run_dir: Path, error: Exception) -> None:
        super().__init__(
            f"the training up to step {step} is saved in {run_dir}, but its evaluation failed "
            f"({type(error).__name__}: {error}): run the same command to evaluate again, or export it as it is"
        )


def main(run_dir: Path) -> int:
    """Train as one rank of the run frozen in `run_dir`; returns the exit code that all ranks agree on."""
    parts, code, message = None, ExitCode.DONE, ""
    try:
        parts = build.build(run_dir)
        fit(parts)
    except Preempted as stop:
        code, message = ExitCode.PREEMPTED, str(stop)
    except Diverged as stop:
        code, message = ExitCode.DIVERGED, str(stop)
        if parts:
            parts.tracker.alert("diverged", message)
    except (PromiseBroken, checkpoint.NoneWhole, checkpoint.NotWritten) as stop:
        code, message = ExitCode.BROKEN_PROMISE, str(stop)
    if parts:
        parts.watchdog.stop()
        parts.tracker.close(message)
    if dist.get_rank() == 0:
        write_exit(run_dir, code, message)
    return code


def fit(parts: Parts) -> None:
    """Train from where the run stands to its last step, then evaluate, check, save and sum up."""
    progress, pruner, train = parts.progress, parts.pruner, parts.config.train
    window = Window(parts)
    evaluate_if_due(parts)  # where the last start was stopped in it
    for t in range(progress.step, train.num_steps):
        if parts.stops_early():
            break
        if t == pruner.first_soft_step:  # the last look at the dense model: no mask or gate is in force yet
            if progress.dense_metrics is None:
                progress.dense_metrics, progress.dense_step = evaluate(parts, "dense"), t
            pruner.begin(t)
        step(parts, window, t)
        evaluate_if_due(parts)
        stop, due = parts.agree(parts.flag.requested, parts.checkpoint_due())
        due = due and progress.saved_step != progress.step and progress.step < train.num_steps
        if stop or due:
            window.check()
        if stop:
            leave(parts)
        if due:
            save(parts)
    finish(parts)


def step(parts: Parts, window: Window, t: int) -> None:
    """Forward and backward of every micro-batch of step t, the pruner's step, a line if it is time. Collective."""
    config, progress, train = parts.config, parts.progress, parts.config.train
    set_lr(parts.engine, lr_factor(t, train.num_steps, config.optim))
    batches = parts.loader.batches(t)
    for micro, (batch, shares) in enumerate(zip(batches, parts.shares(batches), strict=True)):
        torch.manual_seed(seeds.mixed(config.seed, t, micro, parts.world.rank))  # dropout: a function of the step
        loss = parts.loss(batch, t, shares)
        parts.engine.backward(loss)
        if micro + 1 < parts.accumulation:
            parts.engine.step()
        window.add(loss.detach(), batch)
    stats = parts.pruner.step(t, begin_next=t + 1 != parts.pruner.first_soft_step)
    for sentence in stats.warnings:
        parts.tracker.warn("pruning", sentence)
    progress.step = t + 1
    window.step(stats)
    parts.tracker.advance(progress.step)
    if progress.step % train.log_every == 0 or progress.step == train.num_steps:
        window.log(stats)


def evaluate_if_due(parts: Parts) -> None:
    """An evaluation during training, and a checkpoint if it is the best so far or train.export_at's. That of the last
    step is `finish`'s. Collective."""
    progress = parts.progress
    reached = parts.newly_reached() if progress.step < parts.config.train.num_steps else {}
    if reached:
        evaluate_saved(parts, reached)
    elif parts.evaluation_due() and parts.is_best(evaluate_now(parts)):
        save(parts, best=True)


def evaluate_saved(parts: Parts, reached: dict[str, int]) -> None:
    """A checkpoint first, which a failing evaluation cannot take away; then what it is worth. Collective."""
    progress = parts.progress
    if progress.saved_step != progress.step:
        save(parts)
    try:
        metrics = evaluate_now(parts)
    except (Preempted, Diverged):
        raise
    except Exception as error:
        raise NotEvaluated(progress.step, parts.run.path, error) from error
    parts.note_reached(reached)
    best = parts.is_best(metrics)
    progress.logged_bytes = parts.tracker.logged_bytes
    if parts.world.rank == 0:
        root = parts.run.checkpoints
        path = checkpoint.note(root, progress.step, progress.as_dict(), metrics)
        retention.mark(root, progress.reached)
        if best:
            retention.set_best(root, path)
        retention.retain(root, parts.config.train.keep_last)
    parts.world.barrier()


def evaluate_now(parts: Parts) -> dict[str, float]:
    """An evaluation that counts as this step's. Collective."""
    progress = parts.progress
    progress.metrics = evaluate(parts)
    progress.details = parts.task.details(parts.sums, parts.label_names or [])
    progress.evaluated_step = progress.step
    return progress.metrics


def evaluate(parts: Parts, title: str = "eval") -> dict[str, float]:
    """Metrics on the held-out split, the same on every rank. Collective; a request to stop ends it."""
    started = time.perf_counter()

    def batches() -> Iterator[Any]:
        for batch in parts.eval_batches():
            if parts.agree(parts.flag.requested, False)[0]:
                leave(parts)
            yield batch

    parts.sums = parts.world.sum(parts.task.evaluate(parts.engine, batches(), parts.engine.device))
    metrics = parts.task.metrics(parts.sums)
    seconds = time.perf_counter() - started
    parts.aside_s += seconds
    line = {f"{title}/{k}": v for k, v in metrics.items()} | {f"{title}/seconds": seconds}
    parts.tracker.log(line, parts.progress.step)
    if not all(map(math.isfinite, metrics.values())):
        raise Diverged(f"the evaluation at step {parts.progress.step} gave {metrics}")
    return metrics


def leave(parts: Parts) -> None:
    """Save and raise Preempted. Collective."""
    if parts.progress.saved_step != parts.progress.step:
        save(parts)
    raise Preempted(f"stopped on request at step {parts.progress.step}, all saved: run the same command to go on")


def save(parts: Parts, best: bool = False) -> None:
    """A checkpoint of what has been done so far. Collective."""
    progress, root = parts.progress, parts.run.checkpoints
    progress.saved_step, parts.last_save = progress.step, time.monotonic()
    started = time.perf_counter()
    progress.logged_bytes = parts.tracker.logged_bytes
    state, metrics = progress.as_dict(), progress.metrics or {}
    path, seconds, size = checkpoint.timed(
        lambda: checkpoint.save(parts.engine, parts.pruner, root, progress.step, state, metrics)
    )
    progress.save_seconds = seconds
    if parts.world.rank == 0:
        if best:
            retention.set_best(root, path)
        retention.mark(root, progress.reached)
        retention.retain(root, parts.config.train.keep_last)
    parts.world.barrier()
    parts.watchdog.beat()
    parts.aside_s += time.perf_counter() - started
    parts.tracker.log({"checkpoint/seconds": seconds, "checkpoint/bytes": size}, progress.step)


def finish(parts: Parts) -> None:
    """All guarantees, then the last checkpoint and evaluation, unless a start that ended here made them; summary.
    Collective."""
    parts.pruner.check_finished()
    if parts.progress.evaluated_step != parts.progress.step:
        evaluate_saved(parts, parts.newly_reached())
    elif parts.progress.saved_step != parts.progress.step:  # stopped early, by an evaluation that was not the best
        save(parts)
    parts.tracker.summary(build.summary(parts))
    if parts.world.rank == 0:  # who has written the summary
        parts.tracker.say(build.outcome(parts.run))
