"""The loop. Everything that it needs is put together in `pat.training.setup`; everything that it does stands below."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from pat.checkpoint import retention, store
from pat.common import seeds
from pat.config.frozen import same_command
from pat.config.quoting import typed
from pat.pruning.types import PromiseBroken
from pat.run.directory import UNTIL, ExitCode, RunDir, write_exit
from pat.run.preemption import Preempted
from pat.training import setup, slices, summary
from pat.training.divergence import Diverged
from pat.training.going_back import go_back
from pat.training.learning_rate import lr_factor
from pat.training.metrics import Window
from pat.training.state import Training
from pat.zero.engine import set_lr


class StopsHere(Exception):
    """The run is saved where run.until asks it to stop."""


class NotEvaluated(RuntimeError):
    """What has been trained is saved, but its evaluation has failed."""

    def __init__(self, step: int, run_dir: Path, error: Exception) -> None:
        super().__init__(
            f"the training up to step {step} is saved in {run_dir}, but its evaluation failed "
            f"({type(error).__name__}: {error}): {same_command(run_dir)} evaluates again, or export it as it is"
        )


def main(run_dir: Path) -> int:
    """Train as one rank of the run frozen in `run_dir`; returns the exit code that all ranks agree on."""
    training, code, message = None, ExitCode.DONE, ""
    try:
        training = setup.build(run_dir)
        fit(training)
    except StopsHere as stop:
        message = str(stop)
    except Preempted as stop:
        code, message = ExitCode.PREEMPTED, str(stop)
    except Diverged as stop:
        code, message = ExitCode.DIVERGED, f"{stop}; {after_divergence(run_dir)}"
        if training:
            training.tracker.alert("diverged", message)
    except (PromiseBroken, store.NoneWhole, store.NotWritten) as stop:
        code, message = ExitCode.BROKEN_PROMISE, str(stop)
    if training:
        training.watchdog.stop()
        training.tracker.close(message)
    if dist.get_rank() == 0:
        write_exit(run_dir, code, message)
    return code


def after_divergence(run_dir: Path) -> str:
    """Advice for the user of a run that has diverged. Without run.dir the folder's name may hold the rate."""
    saved, command = retention.steps(RunDir(run_dir).checkpoints), same_command(run_dir)
    if not saved:
        return f"lower optim.lr: {command} then begins again, for nothing has been saved yet"
    return f"lower optim.lr and give {typed('run.dir', run_dir)}: {command} then goes on from {saved[-1].name}"


def fit(training: Training) -> None:
    """Train from where the run stands to its last step, then evaluate, check, save and sum up."""
    evaluate_if_due(training)  # where the last start was stopped in it
    if not training.config.train.num_steps:
        prune(training)
    window = Window(training)
    train_on(training, window)
    finish(training)
    while training.guard and training.guard.back:  # the last evaluation was outside the envelope
        go_back(training)
        window.reset()
        train_on(training, window)
        finish(training)


def train_on(training: Training, window: Window) -> None:
    """Step by step to the last one. Collective."""
    progress, pruner, due, train = training.progress, training.pruner, training.due, training.config.train
    while progress.step < train.num_steps and not due.early_stop():
        if training.guard and training.guard.back:
            go_back(training)
            window.reset()
        t = progress.step
        stop_if_asked(training, t)
        if t == pruner.first_soft_step:  # the last look at the dense model: no mask or gate is in force yet
            evaluate_dense(training, t)
        if training.begins(t):
            pruner.begin(t)
        step(training, window, t)
        evaluate_if_due(training)
        asked_to_stop, save_now = training.agree(due.checkpoint(pruner.cuts_next(progress.step)))
        save_now = save_now and progress.saved_step != progress.step and progress.step < train.num_steps
        if asked_to_stop:
            leave(training)
        if save_now:
            save(training)


def prune(training: Training) -> None:
    """A run of no steps: remove everything at once, unless an earlier start has done so. Collective."""
    evaluate_dense(training, 0)
    pruned_before = all(pruner.hardened for pruner in training.pruner.pruners)
    training.pruner.prune()
    if not pruned_before:
        training.progress.saved_step = -1  # a checkpoint of this step would hold the dense model


def evaluate_dense(training: Training, t: int) -> None:
    """What the model is worth before step t removes the first of it, unless an earlier start has measured that; the
    end of a run.until=first_cut. Collective."""
    progress = training.progress
    if progress.dense_metrics is None:
        found = evaluate(training, "dense")
        progress.dense_metrics, progress.dense_slices, progress.dense_step = found.metrics, found.slices, t
    if training.config.run.until == "first_cut":
        save(training)
        raise StopsHere(f"stopped before the first cut, at step {t}, all saved (run.until=first_cut)")
    if training.guard and training.guard.begin():
        save(training)


def stop_if_asked(training: Training, t: int) -> None:
    """The end of a run.until=STEP. Saved first, so a run that goes on knows nothing of this evaluation. Collective."""
    until = training.config.run.until
    if isinstance(until, int) and t >= until:
        if training.progress.saved_step != t:
            save(training)
        evaluate(training, UNTIL)
        raise StopsHere(f"stopped before step {t}, all saved (run.until={until})")


def step(training: Training, window: Window, t: int) -> None:
    """Forward and backward of every micro-batch of step t, the pruner's step, a line if it is time. Collective."""
    config, progress, objective, train = training.config, training.progress, training.objective, training.config.train
    set_lr(training.engine, lr_factor(t, train.num_steps, config.optim, training.pruner.cuts))
    batches = training.feed.batches(t)
    for micro, (batch, shares) in enumerate(zip(batches, objective.shares(batches), strict=True)):
        torch.manual_seed(seeds.mixed(config.seed, t, micro, training.world.rank))  # dropout: a function of the step
        loss = objective.loss(batch, t, shares)
        training.engine.backward(loss)
        if micro + 1 < len(batches):
            training.engine.step()
        window.add(loss.detach(), batch)
    stats = training.pruner.step(t, begin_next=not training.begins(t + 1))
    for sentence in stats.warnings:
        training.tracker.warn("pruning", sentence)
    progress.step = t + 1
    window.step(stats)
    training.tracker.advance(progress.step)
    if progress.step % train.log_every == 0 or progress.step == train.num_steps:
        window.log(stats)


def evaluate_if_due(training: Training) -> None:
    """An evaluation during training, and a checkpoint if it is the best so far, good, or train.export_at's.
    That of the last step is `finish`'s. Collective."""
    progress = training.progress
    reached = training.due.variants(training.pruner.totals) if progress.step < training.config.train.num_steps else {}
    if reached:
        evaluate_saved(training, reached)
    elif training.due.evaluation():
        best = training.due.note_if_best(evaluate_now(training), training.final_phase)
        if best or (training.guard and progress.envelope.good_step == progress.step):
            save(training)


def evaluate_saved(training: Training, reached: dict[str, int]) -> None:
    """A checkpoint first, which a failing evaluation cannot take away; then what it is worth. Collective."""
    progress = training.progress
    if progress.saved_step != progress.step:
        save(training)
    try:
        metrics = evaluate_now(training)
    except (Preempted, Diverged):
        raise
    except Exception as error:
        raise NotEvaluated(progress.step, training.run.path, error) from error
    if reached:
        progress.reached |= reached
        names = " and ".join(f"sparsity={value}" for value in reached)
        training.tracker.say(  # masks move in steps
            f"{names} reached at step {progress.step}, with {training.pruner.totals.exported:.4g}: kept"
        )
    training.due.note_if_best(metrics, training.final_phase)
    progress.logged_bytes = training.tracker.logged_bytes
    if training.world.rank == 0:
        store.note(training.run.checkpoints, progress.step, progress.as_dict(), metrics)
        keep(training)
    training.world.barrier()


def evaluate_now(training: Training) -> dict[str, float]:
    """An evaluation that counts as this step's. Collective."""
    progress = training.progress
    found = evaluate(training)
    progress.metrics, progress.slices = found.metrics, found.slices
    progress.details = training.task.details(found.sums, training.feed.label_names)
    progress.evaluated_step = progress.step
    if training.guard:  # before anything is written, so that the decision is in the same checkpoint
        training.guard.judge(training.tracker)
    return progress.metrics


class Evaluated(NamedTuple):
    """What a model is worth on the held-out split."""

    metrics: dict[str, float]
    sums: torch.Tensor  # that they come from
    slices: slices.Figures | None


def evaluate(training: Training, title: str = "eval") -> Evaluated:
    """The same on every rank. Collective; a request to stop ends it."""
    started = time.perf_counter()

    def batches() -> Iterator[Any]:
        for batch in training.feed.eval_batches():
            if training.agree()[0]:
                leave(training)
            yield batch

    where, of_slices = (training.engine, batches(), training.engine.device), None
    if training.slices is None:
        sums = training.world.sum(training.task.evaluate(*where))
    else:
        sums, of_slices = training.slices.evaluate(*where, training.world)
    metrics = training.task.metrics(sums)
    seconds = time.perf_counter() - started
    training.aside_s += seconds
    line = {f"{title}/{k}": v for k, v in metrics.items()} | {f"{title}/seconds": seconds}
    prefix = "slices" if title == "eval" else f"{title}_slices"
    line |= {f"{prefix}/{name}": one["value"] for name, one in (of_slices or {}).items()}
    training.tracker.log(line, training.progress.step)
    if not all(map(math.isfinite, metrics.values())):
        raise Diverged(f"the evaluation at step {training.progress.step} gave {metrics}")
    return Evaluated(metrics, sums, of_slices)


def leave(training: Training) -> None:
    """Save and raise Preempted. Collective."""
    if training.progress.saved_step != training.progress.step:
        save(training)
    raise Preempted(
        f"stopped on request at step {training.progress.step}, all saved: {same_command(training.run.path)} goes on"
    )


def save(training: Training) -> None:
    """A checkpoint of what has been done so far. Raises Diverged in its place where the loss is out of bounds.
    Collective."""
    progress, root = training.progress, training.run.checkpoints
    training.count()
    training.due.saved()
    started = time.perf_counter()
    progress.logged_bytes = training.tracker.logged_bytes
    state, metrics = progress.as_dict(), progress.metrics or {}
    _, seconds, size = store.timed(
        lambda: store.save(training.engine, training.pruner, root, progress.step, state, metrics)
    )
    progress.save_seconds = seconds
    if training.world.rank == 0:
        keep(training)
        training.pruner.saved()
    training.world.barrier()
    training.watchdog.beat()
    training.aside_s += time.perf_counter() - started
    pruner, line = training.pruner, {"checkpoint/seconds": seconds, "checkpoint/bytes": size}
    line |= {"pruning/phase": pruner.phase(max(0, progress.step - 1)), "pruning/sparsity": pruner.totals.sparsity}
    training.tracker.log(line, progress.step)


def keep(training: Training) -> None:
    """Update the names of the checkpoints, and remove those that nothing holds. Rank 0 only."""
    progress, last = training.progress, training.config.train.keep_last
    retention.keep(training.run.checkpoints, progress.best_step, progress.reached, last, progress.envelope.good_step)


def finish(training: Training) -> None:
    """All guarantees, then the last checkpoint and evaluation, unless a start that ended here made them; summary,
    unless the envelope asks to go back. Collective."""
    progress = training.progress
    training.pruner.check_finished()
    if progress.evaluated_step != progress.step:
        evaluate_saved(training, training.due.variants(training.pruner.totals))
    elif progress.saved_step != progress.step:  # stopped early, by an evaluation that was not the best
        save(training)
    elif training.world.rank == 0:  # the earlier start may have been killed before it moved the names
        keep(training)
    if training.guard:
        training.guard.ends()
        if training.guard.back:
            return
    if passed := [f"{value:g}" for value in training.config.train.export_at if f"{value:g}" not in progress.reached]:
        training.tracker.warn(
            "sparsity not reached",
            f"train.export_at: {' and '.join(passed)} was never reached, {training.pruner.totals.exported:.4g} was",
        )
    learned_nothing = training.bound.learned_nothing()
    if learned_nothing:
        training.tracker.warn("no better than chance", learned_nothing)
    training.tracker.summary(summary.summary(training))
    if training.world.rank == 0:  # rank 0 has written the summary
        training.pruner.ended()
        training.tracker.say(summary.outcome(training.run))
