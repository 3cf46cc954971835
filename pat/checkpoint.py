"""Save, resume, retention: DeepSpeed's files, the pruner's state beside them, and a manifest that vouches for both.

    checkpoints/step-00000200/deepspeed/...                 as DeepSpeed writes it, effective weights
                              pruner-00000-of-00002.safetensors
                              manifest.json                 layout, hashes, trainer state
    checkpoints/latest, best                                a directory name each; they move last and atomically

A checkpoint is written under another name and renamed when it is whole. It is read back through the manifest's segments
(parameter name, logical start, numel), never through DeepSpeed's loader, so that the same code restores the same layout
and any other number of ranks or ZeRO stage.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from pat.checkpoint_reader import FORMAT, CheckpointError, CheckpointReader
from pat.deepspeed_files import shard_file
from pat.hashing import file_sha256
from pat.models.shapes import logical_shape
from pat.pruning.pruner import Pruner
from pat.pruning.shards import Shards
from pat.run import sync_directory, write_atomic

_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class NotWritten(CheckpointError):
    """A rank could not write its part; all ranks agree."""


class NoneWhole(CheckpointError):
    """There are checkpoints, but none is whole; all ranks agree."""


# -- save --------------------------------------------------------------------------------------------------------------


def save(
    engine: Any, pruner: Pruner, root: Path, step: int, trainer: dict[str, Any], metrics: dict[str, float]
) -> Path:
    """Write the checkpoint of `step` completed steps. Raises NotWritten if it cannot be whole. Collective."""
    pruner.check()
    final = root / f"step-{step:08d}"
    partial = root / f"{final.name}.partial"
    rank, world = dist.get_rank(), dist.get_world_size()
    failures: list[str] = []

    def attempt(write: Callable[[], Any]) -> Any:
        """Run a write; a failure is kept, so that no rank leaves a collective which the others have entered."""
        try:
            return write()
        except Exception as error:  # OSError, torch's RuntimeError, SafetensorError, ...
            failures.append(f"rank {rank}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            return None

    def agree() -> None:
        said = [text for texts in pruner.shards.world.gather(failures) for text in texts]
        if said:
            free = shutil.disk_usage(root if root.exists() else root.parent).free >> 20
            if rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
            raise NotWritten(
                f"the checkpoint of step {step} could not be written ({said[0]}; {free} MiB were free in {root}); "
                "those before it are whole"
            )

    if rank == 0:
        attempt(lambda: (shutil.rmtree(partial, ignore_errors=True), partial.mkdir(parents=True)))
    agree()
    writer = engine.checkpoint_engine
    plain_save = writer.save
    writer.save = lambda *args, **kwargs: attempt(lambda: plain_save(*args, **kwargs))
    try:
        engine.save_checkpoint(str(partial), tag="deepspeed", save_latest=False)
    finally:
        del writer.save
    tensors, shared = pruner.state()
    pruner_file = f"pruner-{rank:05d}-of-{world:05d}.safetensors"
    attempt(lambda: save_file(tensors, partial / pruner_file, metadata={"format": str(FORMAT)}))
    agree()
    files = sorted(p for p in partial.rglob("*") if p.is_file())
    mine = attempt(lambda: {str(p.relative_to(partial)): _seal(p) for p in files[rank::world]})
    seals = pruner.shards.world.gather(mine or {})
    layout = pruner.shards.world.gather(_rank_layout(pruner.shards, rank, pruner_file))
    if rank == 0:
        manifest = _manifest(engine, pruner, step, trainer | {"pruners": shared}, metrics)
        manifest |= {"ranks": layout, "files": {k: v for seal in seals for k, v in seal.items()}}
        attempt(lambda: _publish(partial, final, manifest, root))
    agree()
    return final


def _seal(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"sha256": file_sha256(path), "bytes": path.stat().st_size}


def _publish(partial: Path, final: Path, manifest: dict[str, Any], root: Path) -> None:
    for rank in range(manifest["world_size"]):
        shard_file(manifest["files"], manifest["layout"], rank)  # raises where DeepSpeed wrote less than all
    write_atomic(partial / "manifest.json", json.dumps(manifest))
    sync_directory(partial)
    aside = root / f"{final.name}.replaced"  # counts as a checkpoint until the new one is in its place
    shutil.rmtree(aside, ignore_errors=True)
    if final.exists():
        os.replace(final, aside)
    os.replace(partial, final)
    sync_directory(root)
    write_atomic(root / "latest", final.name)
    shutil.rmtree(aside, ignore_errors=True)


def _rank_layout(shards: Shards, rank: int, pruner_file: str) -> dict[str, Any]:
    return {
        "rank": rank,
        "pruner_file": pruner_file,
        "shards": [{"index": s.index, "group": s.group, "numel": s.flat.numel()} for s in shards.shards],
        "segments": [asdict(s) for shard in shards.shards for s in shard.segments],
    }


def _manifest(
    engine: Any, pruner: Pruner, step: int, trainer: dict[str, Any], metrics: dict[str, float]
) -> dict[str, Any]:
    once = {id(p): n for n, p in engine.module.named_parameters()}
    every = engine.module.named_parameters(remove_duplicate=False)
    scaler = getattr(engine.optimizer, "loss_scaler", None) or getattr(engine.optimizer, "loss_scale_config", None)
    counters = {k: getattr(engine, k) for k in ("global_steps", "global_samples", "micro_steps", "skipped_steps")}
    return {
        "format": FORMAT,
        "step": step,
        "phase": {p.name: p.timeline.phase(step - 1) for p in pruner.pruners},
        "world_size": dist.get_world_size(),
        "zero_stage": engine.zero_optimization_stage(),
        "dtype": pruner.config.engine.dtype,
        "layout": pruner.shards.layout,
        "parameters": describe_parameters(engine.module, pruner),
        "tied": {n: once[id(p)] for n, p in every if once[id(p)] != n},
        "metrics": metrics,
        "trainer": trainer
        | {"engine": counters, "scaler": {k: getattr(scaler, k) for k in _SCALER if hasattr(scaler, k)}},
    }


def describe_parameters(model: torch.nn.Module, pruner: Pruner) -> list[dict[str, Any]]:
    """Name, shape, dtype, trainable, pruner of every parameter: what makes two checkpoints of the same kind."""
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


def set_best(root: Path, step_dir: Path) -> None:
    """Point `best` at a checkpoint."""
    write_atomic(root / "best", step_dir.name)


def retain(root: Path, keep_last: int) -> None:
    """Remove all but the newest `keep_last` checkpoints, `latest` and `best`; leftovers of interrupted saves too."""
    pointed = {p.read_text().strip() for p in (root / "latest", root / "best") if p.exists()}
    kept = set(s.name for s in steps(root)[-keep_last:]) | pointed
    for path in root.iterdir():
        if path.is_dir() and path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)


def steps(root: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(p for p in root.glob("step-*") if (p / "manifest.json").exists() and p.suffix != ".partial")


# -- resume ------------------------------------------------------------------------------------------------------------


def find(root: Path, shards: Shards, say: Callable[[str], None]) -> CheckpointReader | None:
    """The newest checkpoint whose every file matches its hash; a torn one is named and passed over. Collective."""
    candidates = [p.name for p in reversed(steps(root))] if root.exists() else []
    pointer = root / "latest"
    if pointer.exists() and pointer.read_text().strip() in candidates:
        latest = pointer.read_text().strip()
        candidates = [latest, *(c for c in candidates if c < latest)]
    candidates = shards.world.gather(candidates)[0]
    for name in candidates:
        try:
            reader, problem = CheckpointReader(root / name, verify=False), ""
            reader.verify_files(share=(dist.get_rank(), dist.get_world_size()))
        except CheckpointError as error:
            reader, problem = None, str(error)
        problems = [p for p in shards.world.gather(problem) if p]
        if not problems:
            return reader
        say(f"checkpoint {name} is not whole ({problems[0]}); trying the one before it")
    if candidates:
        raise NoneWhole(
            f"none of the {len(candidates)} checkpoints in {root} is whole: "
            "move them away, or start anew with run.resume=never"
        )
    return None


def load(engine: Any, pruner: Pruner, reader: CheckpointReader) -> dict[str, Any]:
    """Fill the engine and the pruner from a checkpoint of any layout; returns the trainer state. Collective."""
    manifest = reader.manifest
    check_same_model(manifest, describe_parameters(engine.module, pruner))
    shards = pruner.shards
    for shard in shards.shards:
        moments = _moments(shards.base, shard.flat)
        step = 0
        for s in shard.segments:
            part = slice(s.offset, s.offset + s.numel)
            shard.view[part].copy_(reader.read("weight", s.name, s.start, s.numel))
            for kind, moment in moments.items():
                moment[part].copy_(reader.read(kind, s.name, s.start, s.numel))
            step = reader.optimizer_step(s.name)
        _set_optimizer_step(shards, shard, step)
    for name, param in shards.parameters.items():
        if not param.requires_grad:
            _fill_frozen(param, reader.frozen(name))
    trainer = manifest["trainer"]
    pruner.load_state(reader, trainer["pruners"])
    for key, value in trainer["engine"].items():
        setattr(engine, key, value)
    scaler = getattr(engine.optimizer, "loss_scaler", None) or getattr(engine.optimizer, "loss_scale_config", None)
    for key, value in trainer["scaler"].items():
        setattr(scaler, key, value)
    shards.refresh_forward()
    return trainer


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


def _moments(base: torch.optim.Optimizer, flat: torch.Tensor) -> dict[str, torch.Tensor]:
    """Adam's moments of a shard as vectors, created where the optimizer has not stepped yet."""
    state = base.state[flat]
    for kind in ("exp_avg", "exp_avg_sq"):
        if kind not in state:
            state[kind] = torch.zeros_like(flat.data)
    return {kind: state[kind].view(-1) for kind in ("exp_avg", "exp_avg_sq")}


def _set_optimizer_step(shards: Shards, shard: Any, step: int) -> None:
    state, group = shards.base.state[shard.flat], shards.group_of(shard)
    if type(shards.base).__name__ == "FusedAdam":
        group["step"] = state["step"] = step
    elif type(shards.base).__name__ == "DeepSpeedCPUAdam":
        state["step"] = step
    else:
        device = shard.flat.device if group.get("fused") else "cpu"
        state["step"] = torch.tensor(float(step), dtype=torch.float32, device=device)


def _fill_frozen(param: Any, whole: torch.Tensor) -> None:
    whole = whole.view(-1)
    if hasattr(param, "ds_tensor"):
        width = param.ds_tensor.ds_numel
        start = dist.get_rank() * width
        mine = whole[start : start + width]
        param.ds_tensor.data.view(-1)[: mine.numel()].copy_(mine)
    else:
        param.data.view(-1).copy_(whole)


def timed(work: Callable[[], Path]) -> tuple[Path, float, int]:
    """(path, seconds, bytes) of a save."""
    start = time.perf_counter()
    path = work()
    return path, time.perf_counter() - start, sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
