"""The teacher of a distillation: whether it goes with the model, and how each rank gets it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from pat.common.comm import Comm
from pat.common.hashing import file_sha256
from pat.common.parameters import DTYPES
from pat.common.text import size_in_words
from pat.models import heads, limits, tokenizers
from pat.models.build import build_config, build_model
from pat.models.weight_files import check_weights, weights_sha256
from pat.pruning.schedules import Ramp
from pat.schema import Config, ModelConfig
from pat.tasks import base
from pat.tasks.base import Task
from pat.training.distill import Distiller, uniform_map
from pat.zero import engine

# Model types whose last hidden state is the last layer's own output; those of others go through a final norm.
WITHOUT_FINAL_NORM = (
    "albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta",
)  # fmt: skip


def check(config: Config, task: Task, tokenizer: PreTrainedTokenizerBase, student: PretrainedConfig) -> None:
    """ValueError where the teacher cannot teach this model; reads its config and tokenizer, not its weights."""
    name = f"distill.teacher='{config.distill.teacher}'"
    if config.distill.weight and not task.distribution:
        raise ValueError(
            f"distill.weight={config.distill.weight}, but the output of task.name='{task.name}' is not a "
            "distribution, so it cannot be compared with the teacher's: set it to 0 and give distill.hidden_weight, or "
            "take distill=none"
        )
    teacher = architecture(config, task)
    if config.distill.teacher != config.model.path:
        with _as_teacher():
            other = tokenizers.build_tokenizer(
                ModelConfig(path=config.distill.teacher, revision=config.distill.revision)
            )
        difference = vocabulary_difference(tokenizer.get_vocab(), other.get_vocab())
        if difference:
            raise ValueError(f"{name} has another tokenizer than the model: {difference}; take a teacher with the same")
    _check_head(name, task, teacher)
    limit = limits.positions(teacher)
    if limit is not None and config.data.max_length > limit:
        raise ValueError(f"{name} has {limit} positions, fewer than data.max_length={config.data.max_length}: lower it")
    task.check_model(teacher)
    check_weights(str(config.distill.teacher), "distill.teacher", config.distill.revision)
    if task.labelled:
        _check_labels(name, teacher, student)
    check_shapes(config, task, student, teacher)


def note(config: Config, task: Task, student: PretrainedConfig) -> str | None:
    """A sentence for the start where a teacher names its classes otherwise than the data does."""
    if config.distill.teacher is None or not task.labelled:
        return None
    taken = heads.taken_for(_classes(architecture(config, task)), _classes(student))
    return taken and f"the teacher's {taken}"


def check_shapes(config: Config, task: Task, student: PretrainedConfig, teacher: PretrainedConfig) -> None:
    """ValueError where the two models' logits or hidden states cannot be compared; classes are left out."""
    name = f"distill.teacher='{config.distill.teacher}'"
    ours, theirs = (c.get_text_config().vocab_size for c in (student, teacher))
    if not task.labelled and ours != theirs:
        raise ValueError(f"{name} has logits for {theirs} tokens, the model for {ours}: take a teacher with as many")
    if config.distill.hidden_weight:
        ours, theirs = (c.get_text_config().hidden_size for c in (student, teacher))
        if ours != theirs:
            raise ValueError(
                f"{name} has hidden size {theirs} and the model {ours}: distill.hidden_weight needs equal sizes; "
                "set it to 0"
            )
        layer_map(config, student, teacher)


def build(
    config: Config,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    student: PretrainedConfig,
    ds_config: dict[str, Any],
    device: Any,
) -> Distiller:
    """The frozen teacher in the engine's dtype: sharded at ZeRO 3, else whole on every rank. Collective."""
    names = _classes(student) if task.labelled else None
    with engine.model_construction(config, ds_config):
        model = load(config, task, tokenizer, names)
    if config.engine.zero_stage == 3:
        teacher = engine.build_teacher_engine(model, ds_config)
    else:
        teacher = model.to(device)
    layers = layer_map(config, student, model.config) if config.distill.hidden_weight else []
    return Distiller(teacher, task, config.distill, ramp(config), layers)


def ramp(config: Config) -> Ramp:
    """How the teacher's weight rises over the steps. Raises ValueError."""
    return Ramp.of("distill", config.distill.start, config.distill.end, config.train.num_steps)


def load(config: Config, task: Task, tokenizer: PreTrainedTokenizerBase, label_names: Sequence[str] | None) -> Any:
    """The frozen teacher in the engine's dtype, as it was saved. ValueError where a weight is not in its files."""
    with _as_teacher():
        dtype = DTYPES[config.engine.dtype]
        model = build_model(_source(config), task, dtype, None, tokenizer, label_names, complete=True)
    return model.eval().requires_grad_(False)


def layer_map(config: Config, student: PretrainedConfig, teacher: PretrainedConfig) -> list[int]:
    """Teacher layer of each student layer, counted from 0.

    ValueError for one that does not exist, or a last one against another: the last state has gone through a norm.
    """
    ours, theirs = (c.get_text_config().num_hidden_layers for c in (student, teacher))
    given = config.distill.layer_map
    if given is None:
        given = uniform_map(ours, theirs)
    if len(given) != ours:
        raise ValueError(
            f"distill.layer_map has {len(given)} entries, but the model has {ours} layers: give one for each"
        )
    wrong = [j for j in given if not 0 <= j < theirs]
    if wrong:
        raise ValueError(f"distill.layer_map names layer {wrong[0]}, but the teacher has layers 0 to {theirs - 1}")
    for i, j in enumerate(given):
        last = student if i == ours - 1 else teacher
        if (i == ours - 1) != (j == theirs - 1) and last.get_text_config().model_type not in WITHOUT_FINAL_NORM:
            raise ValueError(
                f"The last state of a {last.model_type} has gone through its final norm and the others have not, but "
                f"layer {i} of the model is compared with layer {j} of the teacher: give a distill.layer_map in which "
                f"the teacher's last layer, {theirs - 1}, is that of the model's last layer and of no other."
            )
    return list(given)


def vocabulary_difference(ours: Mapping[str, int], theirs: Mapping[str, int]) -> str | None:
    """The first token number that stands for different tokens in the two vocabularies; None where they are equal."""
    for token, number in sorted(ours.items(), key=lambda item: item[1]):
        if theirs.get(token) != number:
            there = f"number {theirs[token]}" if token in theirs else "missing"
            return f"token {token!r} is number {number} of the model's and {there} there"
    extra = [token for token in theirs if token not in ours]
    return f"it also has {extra[0]!r}" if extra else None


def identity(config: Config, world: Comm) -> dict[str, str]:
    """Path, and sha256 over the names and hashes of the files that hold the weights. Collective."""
    return {"path": str(config.distill.teacher), "sha256": weights_sha256(_folder(config), world)}


def fetch(config: Config) -> None:
    """Have the teacher's files on this machine."""
    path = str(config.distill.teacher)
    if not os.path.isdir(path):
        snapshot_download(path, revision=config.distill.revision)


def config_sha256(config: Config) -> str:
    """The SHA-256 of the teacher's config.json."""
    return file_sha256(_folder(config) / "config.json")


def _folder(config: Config) -> Path:
    """Where the teacher's files are."""
    path, revision = config.distill.teacher, config.distill.revision
    assert path is not None
    local = os.path.isdir(path)
    return Path(path if local else snapshot_download(path, revision=revision, local_files_only=True))


def check_same(saved: dict[str, str] | None, ours: dict[str, str] | None) -> None:
    """ValueError where a checkpoint was distilled from other weights or draws than this run would go on with."""
    before, now = saved or {}, ours or {}
    if any(before.get(key) != now.get(key) for key in ("sha256", "cache_sha256")):
        raise ValueError(
            f"the checkpoint was made with {_words(saved)} and would go on with {_words(ours)}: "
            "restore that teacher, or use another run.dir or run.resume=never"
        )


def describe(config: Config) -> str:
    """Two lines for `--dry-run`: which teacher, bytes per rank, and how its weight rises."""
    distill, numel = config.distill, num_parameters(config)
    sharded = config.engine.zero_stage == 3
    ranks = config.engine.world_size if sharded else 1
    each = size_in_words(numel * DTYPES[config.engine.dtype].itemsize / ranks)
    where = f"sharded over {ranks} ranks" if sharded else "whole on every rank"
    rising = ramp(config)
    return (
        f"The teacher {distill.teacher} has {numel:,} parameters: {each} per rank ({config.engine.dtype}, {where});\n"
        f"it counts from step {rising.start}, from step {rising.end} with weight {distill.weight} and "
        f"hidden_weight {distill.hidden_weight}."
    )


def num_parameters(config: Config) -> int:
    """Of the teacher, from its architecture alone."""
    task = base.build(config.task)
    with torch.device("meta"):
        model = task.auto_model.from_config(architecture(config, task))
    return sum(p.numel() for p in model.parameters())


def _source(config: Config) -> ModelConfig:
    """The teacher as a model to load."""
    return ModelConfig(
        path=config.distill.teacher,
        revision=config.distill.revision,
        attn_implementation=config.model.attn_implementation,
    )


def architecture(config: Config, task: Task) -> PretrainedConfig:
    """The teacher's config. ValueError where it cannot be read."""
    with _as_teacher():
        return build_config(_source(config), task)


def _check_head(name: str, task: Task, teacher: PretrainedConfig) -> None:
    """A head that is not in the files would be random."""
    saved = teacher.architectures or []
    wanted = task.auto_model._model_mapping.get(type(teacher), None)
    if wanted is not None and saved and wanted.__name__ not in saved:
        raise ValueError(
            f"{name} was saved as a {saved[0]}, without a trained head for the task '{task.name}': "
            f"train a {wanted.__name__} first (`pat train`, `pat export`), and name its folder"
        )


def _check_labels(name: str, teacher: PretrainedConfig, student: PretrainedConfig) -> None:
    """ValueError unless the teacher has as many classes, in the same order where both have names."""
    ours, theirs = _classes(student), _classes(teacher)
    if len(ours) != len(theirs):
        raise ValueError(f"{name} has {len(theirs)} classes, but the data has {len(ours)}: take one with the data's")
    folded, taught = ([each.strip().casefold() for each in names] for names in (ours, theirs))
    if folded != taught and set(folded) == set(taught):
        raise ValueError(f"{name} has the classes in the order {theirs}, but the data in the order {ours}: retrain it")


def _classes(config: PretrainedConfig) -> list[str]:
    """Their names in the order of their numbers."""
    return [name for _, name in sorted((config.id2label or {}).items())]


def _words(teacher: dict[str, str] | None) -> str:
    if not teacher:
        return "no teacher"
    drawn = f", drawn in {teacher['cache']} (sha256 {teacher['cache_sha256'][:12]})" if "cache" in teacher else ""
    return f"the teacher {teacher['path']} (sha256 {teacher['sha256'][:12]}){drawn}"


@contextmanager
def _as_teacher() -> Iterator[None]:
    """Errors about a model name the key that was set."""
    try:
        yield
    except ValueError as error:
        text = str(error).replace("model.path", "distill.teacher").replace("model.tokenizer", "distill.teacher")
        raise ValueError(text) from error
