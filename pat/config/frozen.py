"""A run's config as a file: written once, read by every rank, compared when the run goes on."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

import pat.pruning.registry  # noqa: F401  # reads the methods of pruners
from pat.common.errors import invalid
from pat.common.files import read_json, write_atomic, write_json
from pat.common.keys import structured
from pat.config.errors import explain
from pat.config.task_keys import config_model
from pat.run.directory import RunDir
from pat.run.provenance import versions
from pat.schema import Config

MICRO_BATCH = "train.micro_batch_size"
# A run may go on with other values of these (another cluster, another logger): they change no result that is promised.
ELASTIC = (
    "run.",
    "logger.",
    "engine.world_size",
    "engine.hostfile",
    "engine.zero_stage",
    "engine.offload_optimizer",
    "engine.kernels",
    "engine.threads_per_rank",
    "engine.timeout_min",
    MICRO_BATCH,
    "train.eval_batch_size",
    "train.log_every",
    "train.checkpoint_every",
    "train.checkpoint_every_minutes",
    "train.keep_last",
    "data.cache_dir",
    "data.num_proc",
)
REFUSED_AFTER_S = 20.0  # rank 0 begins as late as that, and what is there until then is of an earlier start
# Keys that may also differ when a run goes on after it diverged.
AFTER_DIVERGENCE = (
    "optim.lr", "optim.base_width", "optim.head_lr", "optim.warmup", "engine.gradient_clipping", "train.max_loss",
    "train.max_skipped",
)  # fmt: skip


def to_config(content: Mapping[str, Any]) -> Config:
    """Plain nested mappings as a typed `Config`, with the methods of pruners as objects. ValueError."""
    try:
        merged = OmegaConf.merge(_unset(config_model()), dict(content))
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ValueError(f"no value for {', '.join(missing)}")
        values: Any = OmegaConf.to_container(merged)
    except OmegaConfBaseException as error:
        raise ValueError(explain(error)) from error
    try:
        return config_model().model_validate(values)
    except ValidationError as error:
        raise ValueError(invalid(error, config_model())) from error


@cache
def _unset(model: type[Config]) -> DictConfig:
    """The typed nodes of a schema with their defaults. Never modified: `merge` copies them."""
    return OmegaConf.structured(structured(model))


def load(path: str | Path) -> Config:
    """The typed config from a run's config.yaml. ValueError where it cannot be read or is not valid."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise ValueError(f"cannot read the run's config {path}: {reason}") from error
    if not isinstance(content, dict):
        raise ValueError(f"cannot read the run's config {path}: it is not a mapping of keys")
    return to_config(content)


def dump(config: Config) -> str:
    """The config as YAML, in the order of the schema."""
    return OmegaConf.to_yaml(OmegaConf.create(config.plain()))


def take_files_in(content: dict[str, Any]) -> None:
    """Files that decide on a result become part of the config, so that it is whole wherever and whenever it is read;
    one that cannot be read stays a name, and what reads it says why."""
    content["engine"]["deepspeed"] = _taken_in(content["engine"]["deepspeed"])
    for settings in content["pruners"].values():
        budget = settings.get("budget")
        if isinstance(budget, dict) and budget.get("name") == "latency":
            budget["table"] = _taken_in(budget.get("table"), "ffn")


def _taken_in(value: Any, has: str | None = None) -> Any:
    """What a JSON file holds, if it is a mapping that has this key."""
    content = read_json(os.path.expanduser(value)) if isinstance(value, str) and value != MISSING else None
    return content if isinstance(content, dict) and (has is None or has in content) else value


def freeze(config: Config, run_dir: Path) -> None:
    """Write config.yaml and version.json before the run starts."""
    check_same_run(config, run_dir)
    run = RunDir(run_dir)
    run.path.mkdir(parents=True, exist_ok=True)
    if run.diverged.exists() and changed_keys(load(run.config), config):
        run.diverged.unlink()  # the values that were to change have changed
    write_json(run.version, versions())
    write_atomic(run.config, dump(config))


def set_aside(config: Config, run_dir: Path) -> Path | None:
    """Where run.resume says so, rename an earlier run's checkpoints, and remove what it came to; returns the new name,
    if there were any. Not before the start is sure: a refused one must cost nothing."""
    run, target = RunDir(run_dir), None
    if config.run.resume != "never":
        return None
    if run.checkpoints.exists() and any(run.checkpoints.iterdir()):
        number = 1
        while (target := run.path / f"checkpoints.{number}").exists():
            number += 1
        os.rename(run.checkpoints, target)
    for path in results(run):
        path.unlink(missing_ok=True)
    return target


def results(run: RunDir) -> tuple[Path, ...]:
    """What `set_aside` removes. Without its id wandb, too, begins another run."""
    return run.metrics, run.summary, run.wandb_id, run.diverged


def same_command(run_dir: Path) -> str:
    """How a sentence names the command that goes on with a run: as it was given, run.resume=never starts over."""
    with contextlib.suppress(ValueError):
        if load(RunDir(run_dir).config).run.resume == "never":
            return "the same command without run.resume=never"
    return "the same command"


def check_same_run(config: Config, run_dir: Path) -> None:
    """ValueError where the directory holds results of another config: ELASTIC keys may differ, but not the loss."""
    run = RunDir(run_dir)
    if config.run.resume != "never" and run.config.exists() and (run.summary.exists() or run.checkpoints.exists()):
        diverged = run.diverged.exists()
        earlier = load(run.config)
        differing = changed_keys(earlier, config, AFTER_DIVERGENCE if diverged else ())
        differing |= _micro_batches(earlier, config)
        if differing:
            if "optim.lr" in differing and differing.get("optim.base_width", (None, 0))[1] is None:
                del differing["optim.base_width"]  # a rate that is given is taken as it is
            changes = "; ".join(_changes(differing, earlier, config))
            raise ValueError(
                f"{run_dir} holds a run with another config ({changes}): go on with the old values, choose another "
                "run.dir, or start over with run.resume=never"
            )


def _changes(differing: Mapping[str, tuple[Any, Any]], earlier: Config, config: Config) -> list[str]:
    """In words; a pruner that one of the two does not have is one change."""
    gone, new = earlier.pruners.keys() - config.pruners.keys(), config.pruners.keys() - earlier.pruners.keys()
    whole = tuple(f"pruners.{name}." for name in gone | new)
    said = [f"pruners.{name} is gone" for name in sorted(gone)] + [f"pruners.{name} is new" for name in sorted(new)]
    kept = {key: values for key, values in differing.items() if key != "pruners" and not key.startswith(whole)}
    why = {MICRO_BATCH: ", which train.global_mean=false makes part of the loss"}
    return said + [f"{key} was {was}, now {now}{why.get(key, '')}" for key, (was, now) in kept.items()]


def _micro_batches(earlier: Config, config: Config) -> dict[str, tuple[int, int]]:
    """Their sizes, if these differ and each one's mean counts alike, whatever the number of answers in it."""
    if earlier.train.global_mean or config.train.global_mean:
        return {}
    from pat.tasks import base  # heavy

    was, now = (
        each.train.micro_batch_size or each.train.global_batch_size // each.engine.world_size
        for each in (earlier, config)
    )
    uneven = base.build(config.task).uneven or config.distill.hidden_weight
    return {MICRO_BATCH: (was, now)} if uneven and was != now else {}


def wait_for_frozen(
    config: Config, run_dir: Path, timeout_s: float = 120.0, refused: Callable[[], str | None] = lambda: None
) -> None:
    """For ranks other than the first: until config.yaml matches what this rank composed; that of an earlier start may
    match already. ValueError after timeout_s, or where rank 0 has left: `refused` gives its sentence then."""
    path, began, seen = RunDir(run_dir).config, time.monotonic(), None
    while True:
        with contextlib.suppress(OSError, ValueError):
            found = path.stat()
            if (key := (found.st_mtime_ns, found.st_ino, found.st_size)) != seen:
                if dump(load(path)) == dump(config):
                    return
                seen = key
        waited_s = time.monotonic() - began
        if waited_s > REFUSED_AFTER_S and (said := refused()):
            raise ValueError(f"rank 0 has left: {said}")
        if waited_s > timeout_s:
            raise ValueError(
                f"rank 0 has not written this rank's config to {path} within {timeout_s:.0f} s: is run.dir on a file "
                "system that all ranks share, and is the command the same on every rank?"
            )
        time.sleep(0.1)


def changed_keys(old: Config, new: Config, allowed: tuple[str, ...] = ()) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ and are neither ELASTIC nor allowed to."""
    contents = [config.plain() for config in (old, new)]
    for content in contents:
        take_files_in(content)  # one of an older version has their names
    before, after = map(flat, contents)
    keys = [key for key in before | after if before.get(key) != after.get(key)]
    return {key: (before.get(key), after.get(key)) for key in keys if not is_one_of(key, ELASTIC + allowed)}


def is_one_of(key: str, names: tuple[str, ...]) -> bool:
    """Whether a key is named, or below one that ends in a point."""
    return key in names or key.startswith(tuple(name for name in names if name.endswith(".")))


def flat(content: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one: {"optim": {"lr": 1.0}} is {"optim.lr": 1.0}; an empty one stays as it is."""
    if not isinstance(content, dict) or not content:
        return {prefix[:-1]: content}
    return {key: value for name, item in content.items() for key, value in flat(item, f"{prefix}{name}.").items()}
