"""The pruner's state beside a DeepSpeed checkpoint that another trainer wrote.

    DIR/global_step200/...           DeepSpeed's files, where the trainer puts them
    DIR/pat/config.yaml model/ tokenizer/ checkpoints/step-00000200/   what a run directory of `pat train` holds

The manifest there vouches for DeepSpeed's files, too; so `pat export DIR` reads it like a run of our own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from pat.checkpoint import retention, store
from pat.checkpoint.manifest import check_same_model, describe_parameters
from pat.common.comm import Comm
from pat.common.files import renew, write_atomic, write_json
from pat.config import frozen
from pat.models import config_files
from pat.pruning.pruner import Pruner
from pat.run.directory import RunDir
from pat.run.provenance import versions
from pat.schema import Config
from pat.zero import checkpoint_files
from pat.zero.checkpoint_files import CheckpointError


def directory(save_dir: Path) -> RunDir:
    """Where the pruner's state lies beside a checkpoint."""
    return RunDir(save_dir / "pat")


def facts(engine: Any, clipping: float) -> dict[str, dict[str, Any]]:
    """The trainer's decisions, for the config that is saved with the state."""
    dtype = "bf16" if engine.bfloat16_enabled() else "fp16" if engine.fp16_enabled() else "fp32"
    hf_config = getattr(engine.module, "config", None)
    return {
        "run": {"name": type(engine.module).__name__},
        "model": {"path": getattr(hf_config, "_name_or_path", None) or None},
        "task": {"name": _task(type(engine.module).__name__)},
        "train": {
            "global_batch_size": engine.train_batch_size(),
            "micro_batch_size": engine.train_micro_batch_size_per_gpu(),
        },
        "engine": {
            "world_size": dist.get_world_size(),
            "zero_stage": engine.zero_optimization_stage(),
            "dtype": dtype,
            "gradient_clipping": clipping,
        },
    }


def _task(model_class: str) -> str:
    """The task whose models `pat export` can write; of another model its class, which export names when it refuses."""
    if model_class.endswith("ForSequenceClassification"):
        return "classification"
    if model_class.endswith("ForTokenClassification"):
        return "token_classification"
    return "causal_lm" if model_class.endswith(("ForCausalLM", "LMHeadModel")) else model_class


def save(
    save_dir: Path,
    tag: str,
    engine: Any,
    pruner: Pruner,
    config: Config,
    tokenizer: Any,
    keep_last: int | None,
    save_latest: bool,  # whether DeepSpeed's file `latest` is to name the tag
) -> None:
    """Write the state of the step that DeepSpeed has just saved under `tag`, and remove those beyond the newest
    `keep_last`. Raises NotWritten where a rank cannot; `latest` then names the tag before. Collective."""
    run, world = directory(save_dir), pruner.layout.world

    def describe() -> None:
        model = engine.module if hasattr(engine.module, "config") else None
        renew(run.path / "model", lambda folder: model is None or config_files.write(model, folder))
        renew(run.path / "tokenizer", lambda folder: tokenizer is None or tokenizer.save_pretrained(folder))
        write_atomic(run.config, frozen.dump(config))
        write_json(run.version, versions())

    _by_rank_0(world, f"the pruner's state beside {save_dir / tag} could not be written", describe)
    step_dir = store.save(
        engine, pruner, run.checkpoints, engine.global_steps, {"tag": tag}, {}, written=save_dir / tag
    )

    def tidy() -> None:
        if save_latest:
            write_atomic(save_dir / "latest", tag)
        _check_opens(save_dir / tag, pruner.layout.name)
        retention.set_best(run.checkpoints, step_dir)
        if keep_last is not None:
            retention.retain(run.checkpoints, keep_last)

    _by_rank_0(world, f"{step_dir} is whole, but what is beside it could not be written", tidy)


def _by_rank_0(world: Comm, failed: str, work: Callable[[], None]) -> None:
    """Let rank 0 write. Raises NotWritten on every rank where it cannot: the others would wait for it. Collective."""
    cause: Exception | None = None
    if world.rank == 0:
        try:
            work()
        except Exception as error:  # OSError, and whatever a tokenizer of another package raises
            cause = error
    said = world.gather("" if cause is None else str(cause) or type(cause).__name__)[0]
    if said:
        raise store.NotWritten(f"{failed}: {said.splitlines()[0]}") from cause


def _check_opens(folder: Path, layout: str) -> None:
    """Warn at the first save, and not at the export, where the user's client_state is in the way of reading."""
    try:
        checkpoint_files.load(folder / checkpoint_files.model_file([p.name for p in folder.iterdir()], layout, 0))
    except CheckpointError as error:
        warnings.warn(
            f"pat export cannot open this checkpoint, so give save_checkpoint a client_state of plain types (numbers, "
            f"strings, lists, dicts): {error}",
            stacklevel=2,
        )


def check(load_dir: Path, config: Config) -> None:
    """Before DeepSpeed loads: ValueError where there is no state of these pruners."""
    run = directory(load_dir)
    if not run.config.is_file():
        raise ValueError(
            f"{load_dir} has no pruner state ({run.config} is not there): resume from a checkpoint that was written "
            "while the pruner was attached, or start anew"
        )
    saved = frozen.load(run.config)
    if saved.seed != config.seed or _plain(saved) != _plain(config):
        raise ValueError(f"{load_dir} was written with other pruners or seed: resume with those of {run.config}")


def load(load_dir: Path, engine: Any, pruner: Pruner, config: Config) -> None:
    """Fill the pruner from beside the checkpoint that DeepSpeed has just loaded. Collective."""
    run = directory(load_dir)
    num_steps = frozen.load(run.config).train.num_steps
    if num_steps != config.train.num_steps:
        raise ValueError(
            f"{load_dir} is of a run of {num_steps} steps, this one has {config.train.num_steps}: the schedules would "
            "be other ones; give the same number"
        )
    state = retention.in_place(run.checkpoints).get(engine.global_steps)
    if state is None:
        there = ", ".join(map(str, retention.in_place(run.checkpoints)))
        raise ValueError(
            f"{load_dir} keeps no state of the pruner of step {engine.global_steps}, but of {there or 'none'}: load "
            "one of those, and give a larger keep_last (null: all) where older ones are to stay"
        )
    try:
        reader = store.open_whole(state, pruner.layout.world)
    except CheckpointError as error:
        raise ValueError(f"{load_dir} is not whole: {error}") from error
    check_same_model(reader.manifest, describe_parameters(engine.module, pruner))
    pruner.load_state(reader, reader.manifest["trainer"]["pruners"])


def _plain(config: Config) -> dict[str, Any]:
    return {name: pruner.plain() for name, pruner in config.pruners.items()}
