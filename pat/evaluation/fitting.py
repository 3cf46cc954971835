"""Whether a folder holds a model of a task, and whether it fits data: before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PretrainedConfig

from pat.data import sampler
from pat.data.prepare import PreparedData
from pat.export.loader import load
from pat.models import limits
from pat.models.build import UNFIT
from pat.models.weight_files import check_weights
from pat.schema import Config
from pat.tasks import base
from pat.tasks.base import Batch, Task


def load_model(folder: Path, path: Path, dtype: torch.dtype, **options: Any) -> Any:
    """The model in a folder that was made of what the user gave, `path`; options go to from_pretrained.

    Raises ValueError, also where transformers would go on with weights made up for those that the files lack.
    """
    try:
        model, report = load(folder, dtype=dtype, output_loading_info=True, **options)
    except (OSError, SafetensorError, RuntimeError, *UNFIT) as error:
        raise ValueError(f"the model in {path} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    lacking = sorted(map(str, report["missing_keys"]))
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise ValueError(
            f"the model in {path} has no weights for {', '.join(lacking[:3])}{more}: its files are not whole, or not "
            f"of the {type(model).__name__} that config.json names"
        )
    return model


def check_labels(prepared: PreparedData, model: Any, name: str) -> None:
    """ValueError where the classes of the data are not those of the model, in their order."""
    if prepared.label_names is not None:
        ours = labels(model)
        if ours != list(prepared.label_names):
            raise ValueError(
                f"the model in {name} has the labels {', '.join(ours)}, the data {', '.join(prepared.label_names)}: "
                "give a model that was trained on them"
            )


def labels(model: Any) -> list[str]:
    """The names of a classifier's outputs, in their order."""
    return [str(model.config.id2label.get(i)) for i in range(model.config.num_labels)]


def eval_batches(
    config: Config, prepared: PreparedData, task: Task, tokenizer: Any, models: Sequence[Any], device: str
) -> Iterator[Batch]:
    """The evaluation samples on one rank, of lengths for which all the models have positions. Raises ValueError."""
    for model in models:
        limits.check(model.config, tokenizer, config.data.max_length, [prepared.eval])
        limits.cap(tokenizer, model.config)
    train = config.train
    size = train.eval_batch_size or train.micro_batch_size or train.global_batch_size // config.engine.world_size or 1
    sized = config.changed(train__eval_batch_size=size)
    return sampler.eval_batches(prepared.eval, task, tokenizer, sized, 0, 1, device)


def check_folder(folder: Path, task: Task) -> None:
    """ValueError where the folder's files say that it holds no model of this task, before any is read."""
    config = model_config(folder)
    saved = (config.architectures or [""])[0]
    if saved and saved not in _classes(task, config):
        fitting = tasks_of(config)
        of = f", which is for task.name={' or '.join(fitting)}"
        if not fitting:
            raise ValueError(
                f"{folder} holds a {saved}, which has not learned the task {task.name}: train it first (the whole "
                "model: pat train ... 'pruners={}')"
            )
        raise ValueError(
            f"{folder} holds a {saved}{of}, and the task is {task.name}: give a recipe of the model's task, or leave "
            "recipe out for a run or an export, which know their own"
        )
    check_weights(str(folder), "the model")


def tasks_of(config: PretrainedConfig) -> list[str]:
    """The names of the tasks that a saved model of this config is for."""
    saved = (config.architectures or [""])[0]
    return [name for name, task in base.classes().items() if saved in _classes(task, config)]


def model_config(folder: Path) -> PretrainedConfig:
    """The Hugging Face config in a folder. Raises ValueError."""
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} holds no config.json: give a run directory, or a folder such as `pat export` writes"
        )
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, *UNFIT) as error:
        raise ValueError(f"{folder}/config.json cannot be read: {str(error).strip().splitlines()[0]}") from error


def _classes(task: Task | type[Task], config: PretrainedConfig) -> list[str]:
    """The names of the model classes by which the task trains a model of this type."""
    classes = task.auto_model._model_mapping.get(type(config), ())
    return [cls.__name__ for cls in (classes if isinstance(classes, tuple) else (classes,))]
