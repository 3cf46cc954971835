"""Save and resume: DeepSpeed's files, the pruner's state beside them, and a manifest that vouches for both.

    checkpoints/step-00000200/deepspeed/...                 as DeepSpeed writes it, effective weights
                              pruner-00000-of-00002.safetensors
                              manifest.json                 layout, hashes, trainer state
    checkpoints/latest, best, sparsity=0.3                  a directory name each; they move last and atomically

A checkpoint is *finished* when it holds a manifest, which is written last, before the directory gets its name. It is
*whole* while every file still has the size and the sha256 that the manifest says: disks and people damage what was
finished, so wholeness is checked anew by `find`, `open_whole` and CheckpointReader(verify=True). A checkpoint is read
through the manifest's segments (parameter name, logical start, numel), never through DeepSpeed's loader, so that one
code restores the same layout and any other number of ranks or ZeRO stage.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from pat.checkpoint import retention
from pat.checkpoint.manifest import check_same_model, describe, describe_parameters, rank_layout, restore_engine
from pat.checkpoint.reader import FORMAT, CheckpointReader, read_manifest
from pat.common.comm import Comm
from pat.common.files import sync_directory, write_atomic
from pat.common.hashing import file_sha256
from pat.pruning.pruner import Pruner
from pat.zero import checkpoint_files
from pat.zero.checkpoint_files import CheckpointError
from pat.zero.layouts import Shard, ZeroLayout


class NotWritten(CheckpointError):
    """A rank could not write its part; all ranks agree."""


class NoneWhole(CheckpointError):
    """There are checkpoints, but none is whole; all ranks agree."""


# -- save --------------------------------------------------------------------------------------------------------------


def save(
    engine: Any,
    pruner: Pruner,
    root: Path,
    step: int,
    trainer: dict[str, Any],
    metrics: dict[str, float],
    written: Path | None = None,
) -> Path:
    """Write the checkpoint of `step` completed steps. Raises NotWritten if it cannot be whole. Collective.

    `written`: a folder in which another trainer has just had DeepSpeed's files written: they are vouched for there, and
    what earlier saves left in it is not.
    """
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
        said = [text for texts in pruner.layout.world.gather(failures) for text in texts]
        if said:
            free = shutil.disk_usage(root if root.exists() else root.parent).free >> 20
            if rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
            raise NotWritten(
                f"the checkpoint of step {step} could not be written ({said[0]}; {free} MiB were free in {root}); "
                "those before it are as they were"
            )

    if rank == 0:
        attempt(lambda: (shutil.rmtree(partial, ignore_errors=True), partial.mkdir(parents=True)))
    agree()
    if written is None:
        _write_deepspeed(engine, partial, attempt)
    tensors, shared = pruner.state()
    pruner_file = f"pruner-{rank:05d}-of-{world:05d}.safetensors"
    attempt(lambda: save_file(tensors, partial / pruner_file, metadata={"format": str(FORMAT)}))
    agree()
    files = [p for p in partial.rglob("*") if p.is_file()]
    if written is not None:
        files += attempt(lambda: _of_this_save(written, pruner.layout.name, pruner.config.engine.dtype, world)) or []
    mine = attempt(lambda: {os.path.relpath(p, partial): _seal(p) for p in sorted(files)[rank::world]})
    agree()
    seals = pruner.layout.world.gather(mine)
    ranks = pruner.layout.world.gather(rank_layout(pruner.layout, rank, pruner_file))
    if rank == 0:
        manifest = describe(engine, pruner, step, trainer | {"pruners": shared}, metrics)
        manifest |= {"ranks": ranks, "files": {k: v for seal in seals for k, v in seal.items()}}
        if written is None:  # another trainer's folder is the user's: it may be loaded from any of its steps
            attempt(lambda: retention.remove_passed_over(root, step))
        attempt(lambda: _publish(partial, final, manifest, root))
    agree()
    return final


def note(root: Path, step: int, trainer: dict[str, Any], metrics: dict[str, float]) -> Path:
    """Add facts to the manifest of the checkpoint of `step` that were not known when it was written. One rank only."""
    folder = root / f"step-{step:08d}"
    manifest = read_manifest(folder)
    manifest |= {"metrics": metrics, "trainer": manifest["trainer"] | trainer}
    write_atomic(folder / "manifest.json", json.dumps(manifest))
    return folder


def _write_deepspeed(engine: Any, folder: Path, attempt: Callable[[Callable[[], Any]], Any]) -> None:
    """DeepSpeed's own files, each written as an attempt, without its recovery scripts, which know nothing of masks.
    Collective."""
    writer = engine.checkpoint_engine
    save, makedirs = writer.save, writer.makedirs
    writer.save = lambda *args, **kwargs: attempt(lambda: save(*args, **kwargs))
    writer.makedirs = lambda *args, **kwargs: attempt(lambda: makedirs(*args, **kwargs))
    engine._copy_recovery_script = lambda _: None
    try:
        engine.save_checkpoint(str(folder), tag="deepspeed", save_latest=False)
    finally:
        del writer.save, writer.makedirs, engine._copy_recovery_script


def _of_this_save(folder: Path, layout: str, dtype: str, world_size: int) -> list[Path]:
    there = [str(path) for path in folder.iterdir() if path.is_file()]
    return [Path(file) for file in checkpoint_files.written(there, layout, dtype, world_size)]


def _seal(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"sha256": file_sha256(path), "bytes": path.stat().st_size}


def _publish(partial: Path, final: Path, manifest: dict[str, Any], root: Path) -> None:
    given = (manifest[key] for key in ("files", "layout", "dtype", "world_size"))
    checkpoint_files.written(*given)  # raises where DeepSpeed wrote less than all
    if unsealed := {of_rank["pruner_file"] for of_rank in manifest["ranks"]} - manifest["files"].keys():
        raise CheckpointError(f"{min(unsealed)} has no hash")
    write_atomic(partial / "manifest.json", json.dumps(manifest))
    sync_directory(partial)
    aside = root / f"{final.name}.replaced"  # counts as a checkpoint until the new one is in its place
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(final, aside)
    os.replace(partial, final)
    sync_directory(root)
    retention.set_latest(root, final)
    shutil.rmtree(aside, ignore_errors=True)


# -- resume ------------------------------------------------------------------------------------------------------------


def find(root: Path, world: Comm, say: Callable[[str], None]) -> CheckpointReader | None:
    """The newest whole checkpoint, and `latest` points at it. One that is finished, but not whole, is named and passed
    over; it stays until the next save. Collective."""
    if world.rank == 0:
        with contextlib.suppress(OSError):  # then it is read where it is
            retention.put_back(root)
    candidates = world.gather(retention.to_resume(root))[0]
    for number, name in enumerate(candidates):
        try:
            reader = open_whole(root / name, world)
        except CheckpointError as error:
            say(f"checkpoint {name} is not whole ({error}); trying the one before it")
            continue
        if passed := candidates[:number]:
            say(f"going on from {name}; the next save removes {', '.join(passed)}: copy it first if you need it")
            if world.rank == 0:
                with contextlib.suppress(OSError):  # as on a full disk: then they stay
                    retention.set_latest(root, root / name)
        return reader
    if candidates:
        raise NoneWhole(
            f"none of the {len(candidates)} checkpoints in {root} is whole: "
            "move them away, or start anew with run.resume=never"
        )
    return None


def open_whole(step_dir: Path, world: Comm) -> CheckpointReader:
    """A reader, once every rank has seen its share of the hashes match; else CheckpointError on all. Collective."""
    try:
        reader, problem = CheckpointReader(step_dir, verify=False), ""
        reader.verify_files(share=(dist.get_rank(), dist.get_world_size()))
    except CheckpointError as error:
        reader, problem = None, str(error)
    problems = [p for p in world.gather(problem) if p]
    if problems or reader is None:
        raise CheckpointError(problems[0])
    return reader


def load(engine: Any, pruner: Pruner, reader: CheckpointReader) -> dict[str, Any]:
    """Fill the engine and the pruner from a checkpoint of any layout; returns the trainer state. Collective."""
    check_same_model(reader.manifest, describe_parameters(engine.module, pruner))
    layout = pruner.layout
    for shard in layout.shards:
        moments = _moments(layout.base, shard.flat)
        step = 0
        for s in shard.segments:
            shard.view[s.part].copy_(reader.read("weight", s.name, s.start, s.numel))
            step = reader.optimizer_step(s.name)
            for kind, moment in moments.items():
                if step:
                    moment[s.part].copy_(reader.read(kind, s.name, s.start, s.numel))
                else:  # before its first step Adam has none, but this engine may have stepped
                    moment[s.part].zero_()
        _set_optimizer_step(layout, shard, step)
    for name, param in layout.parameters.items():
        if not param.requires_grad:
            layout.fill_frozen(name, reader.frozen(name))
    trainer = reader.manifest["trainer"]
    pruner.load_state(reader, trainer["pruners"])
    restore_engine(engine, trainer)
    layout.refresh_forward()
    return trainer


def _moments(base: torch.optim.Optimizer, flat: torch.Tensor) -> dict[str, torch.Tensor]:
    """Adam's moments of a shard as vectors, created where the optimizer has not stepped yet."""
    state = base.state[flat]
    for kind in ("exp_avg", "exp_avg_sq"):
        if kind not in state:
            state[kind] = torch.zeros_like(flat.data)
    return {kind: state[kind].view(-1) for kind in ("exp_avg", "exp_avg_sq")}


def _set_optimizer_step(layout: ZeroLayout, shard: Shard, step: int) -> None:
    state, group = layout.base.state[shard.flat], layout.group_of(shard)
    if type(layout.base).__name__ == "FusedAdam":
        group["step"] = state["step"] = step
    elif type(layout.base).__name__ == "DeepSpeedCPUAdam":
        state["step"] = step
    else:
        device = shard.flat.device if group.get("fused") else "cpu"
        state["step"] = torch.tensor(float(step), dtype=torch.float32, device=device)


def timed(work: Callable[[], Path]) -> tuple[Path, float, int]:
    """(path, seconds, bytes) of a save."""
    start = time.perf_counter()
    path = work()
    return path, time.perf_counter() - start, sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
