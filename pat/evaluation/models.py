"""Opens a model for evaluation: of a run, an export or any Hugging Face folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pat.evaluation.fitting import check_folder, load_model, model_config, tasks_of
from pat.export import origins
from pat.models import heads, tokenizers
from pat.models.build import SUMMED_UP
from pat.schema import ModelConfig
from pat.tasks import base
from pat.tasks.base import Task


@dataclass(frozen=True)
class Loaded:
    """A model, ready to be asked."""

    path: Path  # what the user gave
    folder: Path  # the Hugging Face folder made from it, or itself
    said: Mapping[str, Any]  # what export.json says
    task: Task  # that it is for
    model: Any
    tokenizer: Any

    @property
    def step(self) -> int | None:
        """Of the checkpoint; None: the folder does not say."""
        return self.said.get("lineage", {}).get("step")


@contextlib.contextmanager
def opened(path: Path, task: Task | None, dtype: torch.dtype, device: str) -> Iterator[Loaded]:
    """The model of a run's best checkpoint, or of a folder, without gradients, and its own tokenizer. ValueError.

    task: what it must be for; None: whatever it is for, as long as that is a task. Only safetensors are read: a pickle
    may run code, and a model to compare may be somebody else's.
    """
    with origins.model_folder(path) as (folder, said):
        task = task or _task_of(folder, path)
        check_folder(folder, task)
        _check_one_label(folder, path)
        if not any(folder.glob("*.safetensors")):
            raise ValueError(f"{path} holds no safetensors, and pickles are not read: save it again as safetensors")
        model = load_model(folder, path, dtype, use_safetensors=True).to(device).eval().requires_grad_(False)
        tokenizer = tokenizers.build_tokenizer(ModelConfig(path=str(folder)))
        heads.set_pad_token(model.config, tokenizer.pad_token_id, task.auto_model is SUMMED_UP)
        yield Loaded(path, folder, said, task, model, tokenizer)


def same_tokens(a: Loaded, b: Loaded) -> bool:
    """Whether both turn every text into the same ids."""
    digests = {tokenizers.tokenizer_digest(loaded.tokenizer) for loaded in (a, b)}
    return len(digests) == 1


def _check_one_label(folder: Path, path: Path) -> None:
    """ValueError for a classifier whose labels do not exclude one another: its answer is not the most probable one."""
    if model_config(folder).problem_type == "multi_label_classification":
        raise ValueError(
            f"{path} gives a text several labels (problem_type: multi_label_classification), and pat reads one label a "
            "text: evaluate it elsewhere, or set problem_type to single_label_classification in its config.json if it "
            "was trained for one"
        )


def _task_of(folder: Path, path: Path) -> Task:
    config = model_config(folder)
    fitting = tasks_of(config)
    if not fitting:
        saved = " or ".join(config.architectures or ["model without an architecture"])
        raise ValueError(f"{path} holds a {saved}: a mix is for language models and classifiers of texts")
    return base.build({"name": fitting[0]})
