"""The quality and the size of models on held-out data: of an export, a run, a dense model, or any other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pat.evaluation import samples
from pat.evaluation.figures import Figure, figures
from pat.evaluation.measures import of_rows
from pat.evaluation.models import Loaded, opened
from pat.evaluation.stored import weight_files
from pat.models import heads, tokenizers
from pat.models.build import SUMMED_UP
from pat.models.weight_files import stored_sha256
from pat.schema import Config, ModelConfig
from pat.tasks import base


@dataclass(frozen=True)
class Size:
    """What a model costs."""

    parameters: int
    nonzero_parameters: int
    sparsity: float | None  # removed, of what was prunable; None: the folder does not say
    bytes: int  # of the weights on disk


@dataclass(frozen=True)
class Evaluation:
    """What one model scored on its evaluation data, as metrics and as figures with intervals, and what it costs."""

    folder: str
    parameters: int
    metrics: dict[str, float]
    nonzero_parameters: int
    sparsity: float | None
    bytes: int
    tokens_per_s: float
    step: int | None  # of the checkpoint; None: the folder does not say
    data: str  # what it was measured on
    max_length: int
    tokenizer: str | None  # its digest, where figures are means over its tokens; None: they are not
    figures: list[Figure]  # with intervals, over all and per slice


def evaluate_folder(
    config: Config, path: Path, dtype: torch.dtype, device: str = "cpu", confidence: float = 0.95, seed: int = 0
) -> Evaluation:
    """The figures of the model in a folder or a run directory, with its own tokenizer, on the evaluation split of
    `config`. Raises ValueError where there is no model, or one of another task or with other labels than the data.
    """
    with opened(path, base.build(config.task), dtype, device) as one:
        rows, tokens_per_s = samples.ask(config, one.model, one.tokenizer, str(path), device, one.said)
        size = size_of(one)
        return Evaluation(
            folder=str(path),
            parameters=size.parameters,
            metrics=rows.metrics(),
            nonzero_parameters=size.nonzero_parameters,
            sparsity=size.sparsity,
            bytes=size.bytes,
            tokens_per_s=tokens_per_s,
            step=one.step,
            data=rows.data,
            max_length=config.data.max_length,
            tokenizer=None if rows.task.per_sample else tokenizers.tokenizer_digest(one.tokenizer),
            figures=figures(of_rows(rows), confidence, seed),
        )


def evaluate(config: Config, folder: Path, model: Any, device: str = "cpu") -> dict[str, float]:
    """The metrics of a model that was made from `folder`, quantised for instance."""
    tokenizer = tokenizers.build_tokenizer(ModelConfig(path=str(folder)))
    heads.set_pad_token(model.config, tokenizer.pad_token_id, base.build(config.task).auto_model is SUMMED_UP)
    return samples.ask(config, model, tokenizer, str(folder), device)[0].metrics()


def size_of(one: Loaded) -> Size:
    """Counted in the loaded model; sparsity is as its folder says."""
    parameters = list(one.model.parameters())
    return Size(
        parameters=sum(p.numel() for p in parameters),
        nonzero_parameters=sum(int(torch.count_nonzero(p)) for p in parameters),
        sparsity=one.said.get("sparsity"),
        bytes=weight_bytes(one.folder),
    )


def weight_bytes(folder: Path) -> int:
    """Of the files with the weights."""
    return sum(path.stat().st_size for path in weight_files(folder))


def weights_sha256(folder: Path) -> str:
    """The hash of the weights in a folder as they are stored, as export.json has it of an export in fp32."""
    return stored_sha256(weight_files(folder))
