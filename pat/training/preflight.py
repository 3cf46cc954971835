"""What can be checked before the ranks meet: data, model, pruners, an earlier start."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch

from pat.checkpoint import retention
from pat.checkpoint.manifest import check_same_model, describe_parameters
from pat.checkpoint.reader import CheckpointReader, read_manifest
from pat.common import files
from pat.data.checks import data_warnings
from pat.data.example import example
from pat.data.prepare import PreparedData
from pat.envelope import guard
from pat.models import build, heads, liger, limits, new_weights, tokenizers
from pat.models.weight_files import check_weights
from pat.pruning.pruner import Pruner
from pat.run.directory import RunDir
from pat.schema import Config
from pat.tasks import base
from pat.training import dry_run, layer_by_layer, logit_cache, slices, teacher, tensorboard
from pat.training.checked import Checked
from pat.training.prepared import prepared_data
from pat.zero import engine
from pat.zero.checkpoint_files import CheckpointError


def check_data(config: Config) -> str:
    """The prepared data in a sentence; what does not fit the task or the model is a ValueError."""
    prepared = fitting_data(config)
    if config.train.export_at:
        _check_export_at(config.train.export_at, dry_run.attached(config, prepared.num_labels)[1])
    note, strange = _strange(config, prepared)
    return "\n".join([data_in_words(config, prepared), *note, *(f"warning: {line}" for line in strange)])


def data_in_words(config: Config, prepared: PreparedData) -> str:
    """How much there is, where it is, and a sample as the loss sees it."""
    info, labels = prepared.info, prepared.label_names
    shown = example(prepared, config.data, tokenizers.build_tokenizer(config.model))
    return (
        f"Data: {len(prepared.train):,} training and {len(prepared.eval):,} evaluation samples"
        + (f", labels {', '.join(labels[:8])}{', ...' if len(labels) > 8 else ''}" if labels else "")
        + f"; tokenised in {info['cache']}."
        + (f"\n{shown.plain()}" if shown else "")
    )


def prepare(config: Config, run_dir: Path, here: bool = True) -> Checked:
    """Before the ranks meet: check all that can be checked without them, and tokenise. Raises ValueError.

    here=False: the ranks will run on other machines, so devices are not checked. What packages are there is: jobs have
    this environment.
    """
    if here:
        engine.check_accelerator(config)
    tensorboard.check_installed(config.logger)
    engine.deepspeed_config(config)
    engine.check_values(config)
    build.check_attention(config.model)
    prepared = fitting_data(config)
    note, strange = _strange(config, prepared)
    model, pruner = dry_run.attached(config, prepared.num_labels)
    layer_by_layer.check(model, pruner)
    if config.model.use_liger_kernel:
        liger.check(cast(Any, model).config.model_type, here)
    _check_export_at(config.train.export_at, pruner)
    _check_resumable(config.run.resume, RunDir(run_dir).checkpoints, model, pruner)
    return Checked(prepared, model, pruner, note, strange)


def _strange(config: Config, prepared: PreparedData) -> tuple[list[str], list[str]]:
    """Sentences: (what becomes of a pretrained head, and is new; what looks wrong in the data). Raises ValueError."""
    task = base.build(config.task)
    hf_config = build.build_config(config.model, task, prepared.num_labels, label_names=prepared.label_names)
    new = new_weights.names(config.model, task, hf_config)
    notes = (
        build.head_note(config.model, task, hf_config),
        new_weights.note(config.model, new),
        teacher.note(config, task, hf_config),
    )
    new_weights.check_trained(config, heads.class_of(task.auto_model, hf_config), new)
    return [note for note in notes if note], data_warnings(prepared, task)


def _check_export_at(values: list[float], pruner: Pruner) -> None:
    """A target counts whole units: it may lie a little below what the user wrote."""
    target = pruner.totals.target
    for each in pruner.structure_pruners if values else ():
        if not each.goal.is_certain:
            raise ValueError(
                f"train.export_at is {values}, but scores decide how many of the prunable weights pruners.{each.name} "
                "removes: leave it out, or give budget=shape"
            )
    if values and values[-1] > target + guard.UNITS:
        raise ValueError(
            f"train.export_at has {values[-1]:g}, but the budgets remove {target:.4g} of the prunable weights in the "
            "end: leave it out, or raise the budget"
        )
    if values and len(pruner.structure_pruners) == len(pruner.pruners) == 1 and values[0] < target - guard.UNITS:
        raise ValueError(
            f"train.export_at has {values[0]:g}, but structures are whole until their gates harden, and then "
            f"{target:.4g} of the prunable weights are gone: leave it out, or train a run for each (pat sweep)"
        )


def _check_resumable(mode: str, root: Path, model: torch.nn.Module, pruner: Pruner) -> None:
    """Refuse now what the ranks would only refuse once the model is built."""
    saved = retention.steps(root)
    if mode == "must" and not saved:
        raise ValueError(f"run.resume=must, but {root} holds no checkpoint: check run.dir, or take run.resume=auto")
    if mode != "never" and saved:
        try:
            manifest = read_manifest(saved[-1])
        except CheckpointError:
            return  # torn: ranks will look for an older one
        check_same_model(manifest, describe_parameters(model, pruner))


def fitting_data(config: Config) -> PreparedData:
    """The data, checked against the model's vocabulary, positions and classes, teacher and cache. ValueError."""
    task, tokenizer, prepared = prepared_data(config)
    hf_config = build.build_config(config.model, task, prepared.num_labels, tokenizer, prepared.label_names)
    samples = [part for part in (prepared.train, prepared.eval, prepared.calibration) if part is not None]
    limits.check(hf_config, tokenizer, config.data.max_length, samples)
    task.check_model(hf_config)
    if config.model.path and config.model.init == "pretrained":
        build.check_plain(config.model, hf_config)
        check_weights(config.model.path, "model.path", config.model.revision)
    if config.distill.teacher:
        teacher.check(config, task, tokenizer, hf_config)
    slices.of(config, task, prepared)
    if config.distill.cache:
        logit_cache.fitting(config, task, tokenizer, prepared, hf_config)
    return prepared


def is_complete(config: Config, run_dir: Path) -> bool:
    """Whether an earlier start has finished this run and its last checkpoint is whole: nothing is left to do."""
    directory = RunDir(run_dir)
    saved = retention.steps(directory.checkpoints)
    summary_of = files.read_json(directory.summary) or {}
    last = summary_of.get("step")
    ended = last == config.train.num_steps or summary_of.get("stopped_early")
    if config.run.resume == "never" or not saved or not ended:
        return False
    try:
        return CheckpointReader(saved[-1]).manifest["step"] == last
    except CheckpointError:
        return False


def fetch(config: Config) -> None:
    """For compute nodes without network: prepare the data here, and have the models in Hugging Face's cache."""
    from huggingface_hub import snapshot_download

    for name, revision in (
        (config.model.path, config.model.revision),
        (config.distill.teacher, config.distill.revision),
    ):
        if name and not Path(name).exists():
            snapshot_download(name, revision=revision)
    print(check_data(config))
