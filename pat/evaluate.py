"""What a model folder reaches on a recipe's held-out data: an export, the dense model it came from, any other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pat import data, models, tasks
from pat.config import Config, ModelConfig
from pat.export import load


@dataclass(frozen=True)
class Evaluation:
    """One folder's figures."""

    folder: str
    parameters: int
    metrics: dict[str, float]


def evaluate_folder(config: Config, folder: Path, dtype: torch.dtype, device: str = "cpu") -> Evaluation:
    """The metrics of the model in `folder` on the evaluation split of `config`, with the folder's own tokenizer.

    Raises ValueError where the folder holds no model, or one with other labels than the data.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no config.json: give a Hugging Face folder, such as `pat export` writes")
    model = load(folder, dtype=dtype).to(device)
    metrics = evaluate(config, folder, model, device)
    return Evaluation(str(folder), sum(p.numel() for p in model.parameters()), metrics)


def evaluate(config: Config, folder: Path, model: Any, device: str = "cpu") -> dict[str, float]:
    """The same of a model that was made from `folder`, quantised for instance."""
    task = tasks.build(config.task)
    tokenizer = models.build_tokenizer(ModelConfig(path=str(folder)))
    prepared = data.prepare(config.data, tokenizer, task, config.seed)
    if prepared.label_names is not None:
        ours = [model.config.id2label.get(i) for i in range(model.config.num_labels)]
        if ours != list(prepared.label_names):
            raise ValueError(
                f"the model in {folder} has the labels {', '.join(map(str, ours))}, the data "
                f"{', '.join(prepared.label_names)}: give a model that was trained on them"
            )
    whole = replace(config.train, eval_batch_size=config.train.eval_batch_size or config.train.global_batch_size)
    feed = (task, tokenizer, replace(config, train=whole), 0, 1, device)
    return task.metrics(task.evaluate(model, data.eval_batches(prepared.eval, *feed), device).cpu())
