"""What a checkpoint's manifest says besides its hashes: the model, its layout, the state of the engine."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist

from pat.checkpoint.reader import FORMAT
from pat.common.parameters import logical_shape
from pat.pruning.pruner import Pruner
from pat.pruning.structures.pruner import StructurePruner
from pat.pruning.weights.pruner import WeightPruner
from pat.zero.layouts import ZeroLayout

_COUNTERS = ("global_steps", "global_samples", "skipped_steps")
_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def rank_layout(layout: ZeroLayout, rank: int, pruner_file: str) -> dict[str, Any]:
    """Where each run of a parameter lies in this rank's file."""
    return {
        "rank": rank,
        "pruner_file": pruner_file,
        "shards": [{"index": s.index, "group": s.group, "numel": s.flat.numel()} for s in layout.shards],
        "segments": [asdict(s) for shard in layout.shards for s in shard.segments],
    }


def describe(
    engine: Any, pruner: Pruner, step: int, trainer: dict[str, Any], metrics: dict[str, float]
) -> dict[str, Any]:
    """All of it that is the same on every rank."""
    once = {id(p): n for n, p in engine.module.named_parameters()}
    every = engine.module.named_parameters(remove_duplicate=False)
    return {
        "format": FORMAT,
        "step": step,
        "phase": {p.name: _phase(p, step) for p in pruner.pruners},
        "world_size": dist.get_world_size(),
        "zero_stage": engine.zero_optimization_stage(),
        "dtype": pruner.config.engine.dtype,
        "layout": pruner.layout.name,
        "parameters": describe_parameters(engine.module, pruner),
        "tied": {n: once[id(p)] for n, p in every if once[id(p)] != n},
        "metrics": metrics,
        "trainer": trainer | _engine_state(engine),
    }


def _engine_state(engine: Any) -> dict[str, Any]:
    scaler = _scaler(engine)
    return {
        "engine": {k: getattr(engine, k) for k in _COUNTERS},
        "scaler": {k: getattr(scaler, k) for k in _SCALER if hasattr(scaler, k)},
    }


def _phase(pruner: WeightPruner | StructurePruner, step: int) -> str:
    """The phase of the last step, before masks are permanent no hard one; a run without steps has pruned, or is about
    to."""
    if not step:
        return "hard" if pruner.hardened else "dense"
    phase = pruner.timeline.phase(step - 1)
    return "soft" if phase == "hard" and not pruner.hardened else phase


def restore_engine(engine: Any, trainer: dict[str, Any]) -> None:
    """Set the engine's counters and its loss scaler to the manifest's."""
    for key in _COUNTERS:
        setattr(engine, key, trainer["engine"][key])
    # The optimizer steps where micro_steps is a multiple of the accumulation, which may differ from the saved run's.
    engine.micro_steps = engine.global_steps * engine.gradient_accumulation_steps()
    if scaler := _scaler(engine):  # fp32 has one with ZeRO only
        for key, value in trainer["scaler"].items():
            setattr(scaler, key, value)


def _scaler(engine: Any) -> Any:
    return getattr(engine.optimizer, "loss_scaler", None) or getattr(engine.optimizer, "loss_scale_config", None)


def describe_parameters(model: torch.nn.Module, pruner: Pruner) -> list[dict[str, Any]]:
    """Name, shape, dtype, trainable, pruner of every parameter: two checkpoints of one model have these in common."""
    return [
        {
            "name": name,
            "shape": list(logical_shape(p)),
            "dtype": str(p.dtype).removeprefix("torch."),
            "trainable": p.requires_grad,
            "pruner": pruner.owner.get(name),
        }
        for name, p in model.named_parameters()
    ]


def check_same_model(manifest: dict[str, Any], ours: list[dict[str, Any]]) -> None:
    """ValueError where a checkpoint has other parameters than `describe_parameters` found here."""
    theirs = {p["name"]: p for p in manifest["parameters"]}
    for mine in ours:
        other = theirs.pop(mine["name"], None)
        if other is None or other["shape"] != mine["shape"]:
            was = "does not have it" if other is None else f"has shape {other['shape']}"
            raise ValueError(
                f"the checkpoint is of another model: {mine['name']} has shape {mine['shape']} here, the checkpoint "
                f"{was}; use another run.dir or run.resume=never"
            )
        for key in ("trainable", "pruner"):
            if other[key] != mine[key]:
                raise ValueError(
                    f"the checkpoint was made with another pruner or optim.trainable: {mine['name']} had {key}="
                    f"{other[key]} and now has {mine[key]}; use another run.dir or run.resume=never"
                )
    if theirs:
        raise ValueError(
            f"the checkpoint is of another model: this one has no {next(iter(theirs))}; use another run.dir"
        )
