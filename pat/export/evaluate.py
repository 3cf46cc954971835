"""What models reach on held-out data, and what they cost: an export, a run, the dense model it came from, any other."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PretrainedConfig

from pat.data import prepare, sampler
from pat.data.prepare import PreparedData
from pat.export import origins
from pat.export.loader import load
from pat.export.masks import FILE as MASKS
from pat.models import build, tokenizers
from pat.models.build import UNFIT
from pat.models.weight_files import WEIGHTS, check_weights
from pat.schema import Config, ModelConfig
from pat.tasks import base
from pat.tasks.base import Batch, Task


@dataclass(frozen=True)
class Evaluation:
    """One model's figures."""

    folder: str
    parameters: int
    metrics: dict[str, float]
    nonzero_parameters: int
    sparsity: float | None  # removed, of what was prunable; None: the folder does not say
    bytes: int  # of the weights on disk
    tokens_per_s: float
    step: int | None  # of the checkpoint; None: the folder does not say
    data: str  # what it was measured on
    max_length: int


def evaluate_folder(config: Config, path: Path, dtype: torch.dtype, device: str = "cpu") -> Evaluation:
    """The figures of the model in a folder or a run directory, with its own tokenizer, on the evaluation split of
    `config`. Raises ValueError where there is no model, or one of another task or with other labels than the data.
    """
    with origins.model_folder(path) as (folder, said):
        check_folder(folder, base.build(config.task))
        model = load_model(folder, path, dtype)
        metrics, tokens_per_s = measure(config, folder, model.to(device), device, str(path))
        return Evaluation(
            folder=str(path),
            parameters=sum(p.numel() for p in model.parameters()),
            metrics=metrics,
            nonzero_parameters=sum(int(torch.count_nonzero(p)) for p in model.parameters()),
            sparsity=said.get("sparsity"),
            bytes=weight_bytes(folder),
            tokens_per_s=tokens_per_s,
            step=said.get("lineage", {}).get("step"),
            data=f"{config.data.source}: {config.data.eval or 'held out of ' + str(config.data.train)}",
            max_length=config.data.max_length,
        )


def load_model(folder: Path, path: Path, dtype: torch.dtype, **options: Any) -> Any:
    """The model in a folder that was made of what the user gave, `path`; options go to from_pretrained. ValueError."""
    try:
        return load(folder, dtype=dtype, **options)
    except (OSError, SafetensorError, RuntimeError, *UNFIT) as error:
        raise ValueError(f"the model in {path} cannot be loaded: {str(error).strip().splitlines()[0]}") from error


def evaluate(config: Config, folder: Path, model: Any, device: str = "cpu") -> dict[str, float]:
    """The metrics of a model that was made from `folder`, quantised for instance."""
    return measure(config, folder, model, device)[0]


def measure(
    config: Config, folder: Path, model: Any, device: str = "cpu", name: str | None = None
) -> tuple[dict[str, float], float]:
    """(metrics, tokens per second of the forwards after the first) of a model that was made from `folder`."""
    task = base.build(config.task)
    tokenizer = tokenizers.build_tokenizer(ModelConfig(path=str(folder)))
    prepared = prepare.prepare(config.data, tokenizer, task, config.seed)
    check_labels(prepared, model, name or str(folder))
    batches = eval_batches(config, prepared, task, tokenizer, [model], device)
    clock = _Clock(device)
    sums = task.evaluate(model, clock.timed(batches), device).cpu()
    return task.metrics(sums), clock.tokens_per_s()


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
        build.check_fits(model.config, tokenizer, config.data.max_length)
    sized = config.changed(train__eval_batch_size=config.train.eval_batch_size or config.train.global_batch_size)
    return sampler.eval_batches(prepared.eval, task, tokenizer, sized, 0, 1, device)


class _Clock:
    """Times the forwards of an evaluation but for the first, which makes room and compiles; the only one counts."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.laps: list[tuple[float, int]] = []  # seconds, tokens

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches; the time until the next is asked for is that of a forward."""
        for batch in batches:
            counted = batch["weight"] > 0  # (b,); others are repeated
            lengths = batch["attention_mask"].sum(1) if "attention_mask" in batch else batch["input_ids"].shape[1]
            tokens = int((counted * lengths).sum())
            started = self._now()
            yield batch
            self.laps.append((self._now() - started, tokens))

    def tokens_per_s(self) -> float:
        """Tokens over seconds."""
        laps = self.laps[1:] or self.laps
        return sum(tokens for _, tokens in laps) / sum(seconds for seconds, _ in laps)

    def _now(self) -> float:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()


def weight_bytes(folder: Path) -> int:
    """Size of the files with the weights: safetensors, or pickles where there are none."""
    for pattern in WEIGHTS:
        files = [path for path in folder.glob(pattern) if path.name != MASKS]
        if files:
            return sum(path.stat().st_size for path in files)
    return 0


def check_folder(folder: Path, task: Task) -> None:
    """ValueError where the folder's files say that it holds no model of this task, before any is read."""
    config = model_config(folder)
    saved = (config.architectures or [""])[0]
    if saved and saved not in _classes(task, config):
        fitting = tasks_of(config)
        of = f", which is for task.name={' or '.join(fitting)}" if fitting else ""
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
        return AutoConfig.from_pretrained(folder)
    except (OSError, *UNFIT) as error:
        raise ValueError(f"{folder}/config.json cannot be read: {str(error).strip().splitlines()[0]}") from error


def _classes(task: Task | type[Task], config: PretrainedConfig) -> list[str]:
    """The names of the model classes by which the task trains a model of this type."""
    classes = task.auto_model._model_mapping.get(type(config), ())
    return [cls.__name__ for cls in (classes if isinstance(classes, tuple) else (classes,))]
