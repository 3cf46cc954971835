"""Puts a rank together: ranks meet, data, model, pruner, engine, tracker, and where an earlier start left off."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pat.checkpoint import retention, store
from pat.common import seeds
from pat.common.comm import Comm
from pat.common.files import renew
from pat.common.parameters import DTYPES
from pat.config import frozen
from pat.data import sampler
from pat.data.checks import labels_of
from pat.data.example import example
from pat.models import config_files, trainable, weight_files
from pat.models.build import build_model
from pat.pruning.calibration.calibrator import Surroundings
from pat.pruning.calibration.journal import Journals
from pat.pruning.pruner import Pruner
from pat.pruning.structures.depth import dropped_layers
from pat.run import preemption
from pat.run.directory import RunDir
from pat.schema import Config
from pat.tasks.base import Batch, Task
from pat.training import logit_cache, slices, teacher
from pat.training.calibrating import Calibrating
from pat.training.divergence import LossBound
from pat.training.due import Due
from pat.training.guarded import Guard
from pat.training.lost_zeros import filled_again, lost_zeros
from pat.training.objective import Objective
from pat.training.prepared import prepared_data
from pat.training.progress import Progress
from pat.training.sampled_kl import CachedDistiller
from pat.training.state import Feed, Training
from pat.training.tracking import Tracker
from pat.training.watchdog import end_rank
from pat.zero import engine
from pat.zero.engine import micro_batch_size


def build(run_dir: Path) -> Training:
    """Put this rank together. Collective."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")  # DeepSpeed's calls
    directory = RunDir(run_dir)
    config = frozen.load(directory.config)
    flag = preemption.preemption_flag()
    task, tokenizer, prepared = prepared_data(config)
    ds_config = engine.deepspeed_config(config)
    engine.init_distributed(config)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if world_size != config.engine.world_size:
        raise ValueError(
            f"{world_size} ranks were started, but engine.world_size={config.engine.world_size}: give the same number"
        )
    seeds.seed_everything(config.seed)
    with engine.model_construction(config, ds_config):
        dtype = DTYPES[config.engine.dtype]
        model = build_model(config.model, task, dtype, prepared.num_labels, tokenizer, prepared.label_names)
    trainable.choose_trainable(model, config)
    if config.engine.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if rank == 0:
        shown = example(prepared, config.data, tokenizer)
        if shown:
            config_files.add_ends(model, shown.ends)
        renew(directory.path / "tokenizer", tokenizer.save_pretrained)
        renew(directory.path / "model", partial(config_files.write, model))
        if shown:
            shown.show()
    pruner = Pruner(config)
    pruner.attach(model)
    ds_engine = engine.build_engine(config, model, pruner.owner, ds_config)
    pruner.bind(ds_engine)
    world = pruner.layout.world
    progress = Progress(
        data=[list(each) for each in prepared.origin],
        calibration=prepared.calibration_key,
        labels=prepared.label_names,
    )
    distiller, more = None, None
    if config.distill.cache:
        cache = _cache(config, world, logit_cache.fitting(config, task, tokenizer, prepared, model.config))
        distiller, more = CachedDistiller(task, config.distill, teacher.ramp(config)), partial(cache.more, task)
        progress.teacher = cache.identity()
    elif config.distill.teacher:
        distiller = teacher.build(config, task, tokenizer, model.config, ds_config, ds_engine.device)
        distiller.dropped = lambda: dropped_layers(pruner.structure_pruners)
        progress.teacher = teacher.identity(config, world)
    objective = Objective(ds_engine, task, world, config.train.global_mean, distiller)
    metric = config.train.best_metric or task.best_metric
    feed = (task, tokenizer, config, rank, world_size, ds_engine.device)
    training = Training(
        config=config,
        run=directory,
        world=world,
        task=task,
        feed=Feed(
            sampler.BatchLoader(prepared.train, *feed, mixture=prepared.mixture, more=more).batches,
            lambda: sampler.eval_batches(prepared.eval, *feed),
            prepared.label_names or [],
        ),
        engine=ds_engine,
        pruner=pruner,
        objective=objective,
        tracker=Tracker(config, directory, rank),
        flag=flag,
        progress=progress,
        due=Due(config.train, progress, metric, task.higher_is_better(metric)),
        bound=LossBound(config, progress, objective.chance(labels_of(prepared.train)), task.worse),
        slices=slices.of(config, task, prepared),
    )
    there, batches = prepared.to_calibrate(), training.feed.batches
    if prepared.calibration is not None:
        batches = sampler.BatchLoader(prepared.calibration, *feed, prefetch=False).batches
    say, warn = training.tracker.say, training.tracker.warn
    journals = Journals(directory.calibration, world, say, partial(warn, "cut not kept"))
    calibrating = Calibrating(training, journals)
    pruner.calibrator.surroundings = Surroundings(
        samples=partial(_first_samples, config, batches, there),
        loss=partial(_summed_loss, task),
        labels=lambda batch: int(task.supervised(batch).sum()),
        on_layer=calibrating.on_layer,
        on_gradients=calibrating.on_gradients,
        warn=warn,
        journals=journals,
    )
    zeros = [lost_zeros(model, config, pruner.owner, world)]
    for said in [*zeros, *(filled_again(model, one, world) for one in pruner.weight_pruners)]:
        if said:
            warn("zeros not kept", said)
    if config.envelope:
        training.guard = Guard(config, progress, pruner, task)
        pruner.follow(progress.clock)
    _resume(training)
    if progress.step < config.train.num_steps:
        pruner.check_calibration()
    if not training.begins(progress.step):
        pruner.begin(progress.step)
    _start_watchdog(training, config.engine.timeout_min)
    return training


def _cache(config: Config, world: Comm, cache: logit_cache.LogitCache) -> logit_cache.LogitCache:
    """The cache, after checking that its files are intact and come from the named teacher. Collective."""
    cache.check_hashes(world)
    if config.distill.teacher:
        cache.check_teacher(teacher.identity(config, world))
    return cache


def _first_samples(config: Config, batches: Callable[[int], list[Any]], there: int, number: int) -> list[Any]:
    """This rank's first micro-batches, until all ranks together have enough samples, or all `there` are, after which
    the order of the next epoch fills up the last; `batches`: of a step."""
    number = min(number, there)
    wanted = math.ceil(number / (micro_batch_size(config) * config.engine.world_size))
    steps = math.ceil(number / config.train.global_batch_size)
    return [batch for t in range(steps) for batch in batches(t)][:wanted]


def _summed_loss(task: Task, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Over what the task's loss counts in a micro-batch."""
    return task.loss(model, batch) * task.supervised(batch).sum()


def _start_watchdog(training: Training, minutes: float) -> None:
    """End this rank when it has waited for longer than engine.timeout_min."""
    command = frozen.same_command(training.run.path)  # now: a file system may be what hangs
    training.watchdog.start(
        60 * minutes,
        bite=lambda: end_rank(training.run.path, training.world.rank, minutes, command),
        bark=lambda waited_s: training.tracker.warn(
            "stalled",
            f"nothing has happened for {waited_s / 60:.1f} minutes: a rank may hang or be gone; logs/rank-N.log say "
            f"where each stands, and after {minutes:g} minutes (engine.timeout_min) the run ends",
        ),
    )


def _resume(training: Training) -> None:
    mode, progress, tracker = training.config.run.resume, training.progress, training.tracker
    reader = None if mode == "never" else store.find(training.run.checkpoints, training.world, tracker.say)
    if reader is None:
        model = training.config.model
        path = model.path if model.init == "pretrained" else None
        progress.base = weight_files.identity(path, model.revision, training.world)
        tracker.start(0, cuts=training.pruner.cuts_from(0))
        return
    manifest = reader.manifest
    teacher.check_same(manifest["trainer"].get("teacher"), progress.teacher)
    warning, now = progress.other_data(manifest["trainer"]), (progress.data, progress.calibration)
    progress.restore(manifest["trainer"])  # first, because the clock decides in which phase the pruners are
    store.load(training.engine, training.pruner, reader)
    if training.guard and training.world.rank == 0:
        retention.undo(training.run.checkpoints, reader.dir)  # a kill may have come before
    tracker.start(progress.step, progress.logged_bytes, training.pruner.cuts_from(progress.step))
    progress.data, progress.calibration = now  # a checkpoint names what comes next
    if warning:
        tracker.warn("other data", warning)
    ranks = manifest["world_size"]
    said = f"{ranks} rank{'s' * (ranks > 1)} at ZeRO {manifest['zero_stage']}"
    tracker.say(f"resumed at step {progress.step} from {said}")
