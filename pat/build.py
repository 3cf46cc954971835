"""Puts a rank together: ranks meet, data, model, pruner, engine, tracker, and where an earlier start left off."""

from __future__ import annotations

import resource
import sys
import warnings
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist

from pat import checkpoint, compose, data, engine, models, retention, run, tasks, teacher
from pat.checkpoint_reader import CheckpointError, CheckpointReader, read_manifest
from pat.data.checks import data_warnings, label_shares
from pat.data.example import example
from pat.divergence import LossBound
from pat.due import Due
from pat.manifest import check_same_model, describe_parameters
from pat.models import liger
from pat.models.dtypes import DTYPES
from pat.models.weight_files import check_weights
from pat.objective import Objective
from pat.parts import Feed, Training
from pat.progress_state import Progress
from pat.pruning import plan
from pat.pruning.depth import dropped_layers
from pat.pruning.pruner import Pruner
from pat.schema import Config
from pat.start_summary import Checked
from pat.tracking import Tracker
from pat.watchdog import end_rank

UNITS = 0.005  # by which a target may lie below a budget's sparsity, for units are whole


def check_data(config: Config) -> str:
    """The prepared data in a sentence; what does not fit the task or the model is a ValueError."""
    prepared = fitting_data(config)
    if config.train.export_at:
        _check_export_at(config.train.export_at, plan.attached(config, prepared.num_labels)[1])
    note, strange = _strange(config, prepared)
    return "\n".join([data_in_words(config, prepared), *note, *(f"warning: {line}" for line in strange)])


def data_in_words(config: Config, prepared: data.PreparedData) -> str:
    """How much there is, where it is, and a sample as the loss sees it."""
    info, labels = prepared.info, prepared.label_names
    shown = example(prepared, config.data, models.build_tokenizer(config.model))
    return (
        f"Data: {len(prepared.train):,} training and {len(prepared.eval):,} evaluation samples"
        + (f", labels {', '.join(labels[:8])}{', ...' if len(labels) > 8 else ''}" if labels else "")
        + f"; tokenised in {info['cache']}."
        + (f"\n{shown.plain()}" if shown else "")
    )


def prepare(config: Config, run_dir: Path) -> Checked:
    """Before the ranks meet: check all that can be checked without them, and tokenise. Raises ValueError."""
    engine.check_accelerator(config)
    engine.deepspeed_config(config)
    prepared = fitting_data(config)
    note, strange = _strange(config, prepared)
    model, pruner = plan.attached(config, prepared.num_labels)
    if config.model.use_liger_kernel:
        liger.check(cast(Any, model).config.model_type)
    _check_export_at(config.train.export_at, pruner)
    _check_resumable(config.run.resume, run.RunDir(run_dir).checkpoints, model, pruner)
    return Checked(prepared, model, pruner, note, strange)


def _strange(config: Config, prepared: data.PreparedData) -> tuple[list[str], list[str]]:
    """(what becomes of a pretrained head, what looks wrong in the data), in sentences. Raises ValueError."""
    task = tasks.build(config.task)
    hf_config = models.build_config(config.model, task, prepared.num_labels, label_names=prepared.label_names)
    note = models.head_note(config.model, task, hf_config)
    return [note] if note else [], data_warnings(prepared, task)


def _check_export_at(values: list[float], pruner: Pruner) -> None:
    """A target counts whole units: it may lie a little below what the user wrote."""
    target = pruner.totals.target
    if values and values[-1] > target + UNITS:
        raise ValueError(
            f"train.export_at has {values[-1]:g}, but the budgets remove {target:.4g} of the prunable weights in the "
            "end: leave it out, or raise the budget"
        )


def _check_resumable(mode: str, root: Path, model: torch.nn.Module, pruner: Pruner) -> None:
    """What the ranks would find out only when the model is built."""
    found = retention.steps(root)
    if mode == "must" and not found:
        raise ValueError(f"run.resume=must, but {root} holds no checkpoint: check run.dir, or take run.resume=auto")
    if mode != "never" and found:
        try:
            manifest = read_manifest(found[-1])
        except CheckpointError:
            return  # torn: the ranks look for an older one
        check_same_model(manifest, describe_parameters(model, pruner))


def fitting_data(config: Config) -> data.PreparedData:
    """The data, checked against the model's vocabulary, positions and classes, and the teacher's. ValueError."""
    task, tokenizer, prepared = _data(config)
    hf_config = models.build_config(config.model, task, prepared.num_labels, tokenizer, prepared.label_names)
    models.check_fits(hf_config, tokenizer, config.data.max_length)
    task.check_model(hf_config)
    if config.model.path and config.model.init == "pretrained":
        check_weights(config.model.path, "model.path", config.model.revision)
    if config.distill.teacher:
        teacher.check(config, task, tokenizer, hf_config)
    return prepared


def _data(config: Config) -> tuple[Any, Any, Any]:
    """(task, tokenizer, prepared data), from the cache where it is there."""
    task = tasks.build(config.task)
    tokenizer = models.build_tokenizer(config.model)
    prepared = data.prepare(config.data, tokenizer, task, config.seed)
    return task.fitted(label_shares(prepared)), tokenizer, prepared


def build(run_dir: Path) -> Training:
    """Put this rank together. Collective."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")  # DeepSpeed's calls
    directory = run.RunDir(run_dir)
    config = compose.load(directory.config)
    flag = run.preemption_flag()
    task, tokenizer, prepared = _data(config)
    ds_config = engine.deepspeed_config(config)
    engine.init_distributed(config)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if world_size != config.engine.world_size:
        raise ValueError(
            f"{world_size} ranks were started, but engine.world_size={config.engine.world_size}: give the same number"
        )
    run.seed_everything(config.seed)
    with engine.model_construction(config, ds_config):
        dtype = DTYPES[config.engine.dtype]
        model = models.build_model(config.model, task, dtype, prepared.num_labels, tokenizer, prepared.label_names)
    engine.choose_trainable(model, config)
    if config.engine.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if rank == 0:
        tokenizer.save_pretrained(directory.path / "tokenizer")
        model.config.save_pretrained(directory.path / "model")
        shown = example(prepared, config.data, tokenizer)
        if shown:
            shown.show()
    pruner = Pruner(config)
    pruner.attach(model)
    ds_engine = engine.build_engine(config, model, pruner.owner, ds_config)
    pruner.bind(ds_engine)
    world, progress = pruner.shards.world, Progress()
    distiller = None
    if config.distill.teacher:
        distiller = teacher.build(config, task, tokenizer, model.config, ds_config, ds_engine.device)
        distiller.dropped = lambda: dropped_layers(pruner.gates)
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
            data.BatchLoader(prepared.train, *feed, mixture=prepared.mixture).batches,
            lambda: data.eval_batches(prepared.eval, *feed),
            prepared.label_names or [],
        ),
        engine=ds_engine,
        pruner=pruner,
        objective=objective,
        tracker=Tracker(config, directory, rank),
        flag=flag,
        progress=progress,
        due=Due(config.train, progress, metric, task.higher_is_better(metric)),
        bound=LossBound(config, progress, objective.chance()),
    )
    _resume(training)
    if progress.step != pruner.first_soft_step:  # there the loop begins, once it has measured the dense model
        pruner.begin(progress.step)
    _watch(training, config.engine.timeout_min)
    return training


def _watch(training: Training, minutes: float) -> None:
    """End this rank when it has waited so long."""
    training.watchdog.start(
        60 * minutes,
        bite=lambda: end_rank(training.run.path, training.world.rank, minutes),
        bark=lambda waited_s: training.tracker.warn(
            "stalled",
            f"nothing has happened for {waited_s / 60:.1f} minutes: a rank may hang or be gone; logs/rank-N.log say "
            f"where each stands, and after {minutes:g} minutes (engine.timeout_min) the run ends",
        ),
    )


def _resume(training: Training) -> None:
    mode, progress, tracker = training.config.run.resume, training.progress, training.tracker
    reader = None if mode == "never" else checkpoint.find(training.run.checkpoints, training.pruner.shards, tracker.say)
    if reader is None:
        tracker.start(0)
        return
    manifest = reader.manifest
    teacher.check_same(manifest["trainer"].get("teacher"), progress.teacher)
    progress.restore(checkpoint.load(training.engine, training.pruner, reader))
    tracker.start(progress.step, progress.logged_bytes)
    tracker.say(f"resumed at step {progress.step} from {manifest['world_size']} ranks at ZeRO {manifest['zero_stage']}")


def summary(training: Training) -> dict[str, Any]:
    """What summary.json holds. Collective."""
    config, pruner, progress = training.config, training.pruner, training.progress
    mask_hash, weights_hash = pruner.hashes()
    every = sum(pruner.shards.numel(p) for p in pruner.shards.parameters.values())
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
        "phase": pruner.phase(progress.step - 1),
        "target_sparsity": pruner.totals.target,
        "sparsity": pruner.totals.sparsity,
        "sparsity_all_parameters": pruner.totals.num_pruned / every,
        "parameters": every,
        "prunable_parameters": pruner.totals.numel,
        "mask_sha256": mask_hash if pruner.pruners else None,
        "kept_units": {gate.name: gate.counts() for gate in pruner.gates},
        "kept_gates": {gate.name: gate.kept_gates for gate in pruner.gates if gate.kept_gates},
        "weights_sha256": weights_hash,
        "teacher": progress.teacher,
        "initial_loss": progress.initial_loss,
        "max_loss": training.bound.limit,
        "skipped_steps": progress.skipped,
        "dense_metrics": progress.dense_metrics,
        "dense_step": progress.dense_step,
        "metrics": progress.metrics,
        "details": progress.details,
        "stopped_early": training.due.early_stop(),
        "reached": progress.reached,
        "tokens_per_s": progress.tokens / progress.train_seconds if progress.train_seconds else None,
        "train_seconds": progress.train_seconds,
        "peak_memory_bytes": int(training.world.max(torch.tensor(peak_memory_bytes(), dtype=torch.int64))),
        "pruner_state_bytes_per_rank": progress.peak_pruner_bytes,
        "checkpoint_seconds": progress.save_seconds,
        "versions": run.versions(),
    }


def outcome(directory: run.RunDir) -> str:
    """A finished run in a sentence, from its summary: what was reached, where it is, what comes next."""
    found = run.read_json(directory.summary) or {}
    now, before = (
        ", ".join(f"{name} {value:.4g}" for name, value in (metrics or {}).items() if isinstance(value, float))
        for metrics in (found["metrics"], found["dense_metrics"])
    )
    reached = (found.get("reached") or {}).items()
    variants = ", ".join(f"--checkpoint sparsity={value} (of step {step})" for value, step in reached)
    end = "done, stopped early at" if found.get("stopped_early") else "done,"
    pruned = f"{found['sparsity']:.2%} of {found['prunable_parameters']:,} prunable weights removed, "
    return (
        f"{end} step {found['step']}: {pruned if found['prunable_parameters'] else ''}{now}\n"
        + (f"before pruning began, after {found['dense_step']} of {found['step']} steps: {before}\n" if before else "")
        + f"the run is in {directory.path}; as a Hugging Face folder: pat export {directory.path} --out DIR"
        + (f"\nor what it was on the way: {variants}" if variants else "")
    )


def is_complete(config: Config, run_dir: Path) -> bool:
    """Whether an earlier start has finished this run and its last checkpoint is whole: nothing is left to do."""
    directory = run.RunDir(run_dir)
    found = retention.steps(directory.checkpoints)
    summary_of = run.read_json(directory.summary) or {}
    last = summary_of.get("step")
    ended = last == config.train.num_steps or summary_of.get("stopped_early")
    if config.run.resume == "never" or not found or not ended:
        return False
    try:
        return CheckpointReader(found[-1]).manifest["step"] == last
    except CheckpointError:
        return False


def peak_memory_bytes() -> int:
    """Of this rank: the GPU's allocator if there is one, else the process's resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
