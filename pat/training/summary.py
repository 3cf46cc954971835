"""The result of a finished run: summary.json, and a sentence."""

from __future__ import annotations

from typing import Any

import torch

from pat.common import files
from pat.common.parameters import logical_numel
from pat.envelope import guard
from pat.run import provenance
from pat.run.directory import RunDir
from pat.training.hardware import peak_memory_bytes
from pat.training.state import Training

PRUNED = "; pat prune goes on to export it, after pat train `pat export` does"  # of a run without steps


def summary(training: Training) -> dict[str, Any]:
    """What summary.json holds. Collective."""
    config, pruner, progress = training.config, training.pruner, training.progress
    mask_hash, weights_hash = pruner.hashes()
    every = sum(map(logical_numel, pruner.layout.parameters.values()))
    return {
        "recipe": config.run.recipe,
        "run": config.run.name,
        "seed": config.seed,
        "world_size": training.world.world_size,
        "zero_stage": config.engine.zero_stage,
        "dtype": config.engine.dtype,
        "deepspeed_untested": list(config.engine.deepspeed_untested),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "step": progress.step,
        "phase": pruner.phase(max(progress.step - 1, 0)),
        "target_sparsity": pruner.totals.target,
        "sparsity": pruner.totals.sparsity,
        "sparsity_all_parameters": pruner.totals.num_pruned / every,
        "parameters": every,
        "prunable_parameters": pruner.totals.numel,
        "mask_sha256": mask_hash if pruner.pruners else None,
        "kept_units": {each.name: each.counts() for each in pruner.structure_pruners},
        "kept_gates": {each.name: each.kept_gates for each in pruner.structure_pruners if each.kept_gates},
        "weights_sha256": weights_hash,
        "teacher": progress.teacher,
        "initial_loss": progress.initial_loss,
        "max_loss": training.bound.limit,
        "skipped_steps": progress.skipped,
        "dense_metrics": progress.dense_metrics,
        "dense_step": progress.dense_step,
        "metrics": progress.metrics,
        "dense_slices": progress.dense_slices,
        "slices": progress.slices,
        "details": progress.details,
        "best_step": progress.best_step,
        "stopped_early": progress.step < config.train.num_steps and training.due.early_stop(),
        "envelope": guard.in_short(progress.envelope) if training.guard else None,
        "reached": progress.reached,
        "tokens_per_s": progress.tokens / progress.train_seconds if progress.train_seconds else None,
        "train_seconds": progress.train_seconds,
        "calibration_seconds": progress.calibration_seconds,
        "peak_memory_bytes": int(training.world.max(torch.tensor(peak_memory_bytes(), dtype=torch.int64))),
        "pruner_state_bytes_per_rank": progress.peak_pruner_bytes,
        "checkpoint_seconds": progress.save_seconds,
        "versions": provenance.versions(),
    }


def outcome(directory: RunDir) -> str:
    """A finished run in a sentence, from its summary: what was reached, where it is, what comes next."""
    written = files.read_json(directory.summary) or {}
    now, before = (
        ", ".join(f"{name} {value:.4g}" for name, value in (metrics or {}).items() if isinstance(value, float))
        for metrics in (written["metrics"], written["dense_metrics"])
    )
    reached = (written.get("reached") or {}).items()
    variants = ", ".join(f"--checkpoint sparsity={value} (of step {step})" for value, step in reached)
    best = written.get("best_step")
    earlier = best is not None and best != written["step"]
    end = "done, stopped early at" if written.get("stopped_early") else "done,"
    pruned = f"{written['sparsity']:.2%} of {written['prunable_parameters']:,} prunable weights removed, "
    dense = (
        f"before pruning began, after {written['dense_step']} of {written['step']} steps: {before} (for a dense model "
        "trained as long, run the same command with 'pruners={}' and another run.dir, at this learning rate and at "
        "half of it, since its best rate may differ)"
        if written["step"]
        else f"before it was pruned: {before}; nothing was trained"
    )
    return (
        f"{end} step {written['step']}: {pruned if written['prunable_parameters'] else ''}{now}\n"
        + (f"{dense}\n" if before else "")
        + f"the run is in {directory.path}"
        + (f"; as a Hugging Face folder: pat export {directory.path} --out DIR" if written["step"] else PRUNED)
        + (f"\nthe best checkpoint is of step {best}: export, evaluate and compare take it" if earlier else "")
        + (f"\nor what it was on the way: {variants}" if variants else "")
        + (f"\n{guard.in_words(written['envelope'])}" if written.get("envelope") else "")
    )
