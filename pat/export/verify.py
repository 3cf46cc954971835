"""Proof that an exported folder is the checkpoint's model: every bit of every tensor, and the logits of stock code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging

from pat.checkpoint_reader import CheckpointError, CheckpointReader
from pat.export import masks
from pat.export.source import weight_chunks
from pat.export.writer import Spec

LOGIT_LIMIT = 4 << 30  # bytes of weights up to which "auto" compares logits: two models are built for it
LOGIT_TOLERANCE = 1e-3  # the same code on the same bits: 0 is what to expect
ROWS, TOKENS = 4, 32  # random token ids


class ExportError(CheckpointError):
    """The written folder is not the checkpoint's model."""


def check_tensors(
    reader: CheckpointReader,
    folder: Path,
    specs: list[Spec],
    weight_map: dict[str, str],  # the file of each tensor
    mask_sha256: str | None,
    advance: Callable[[int], None],  # told the elements done
) -> None:
    """Reload every tensor: bit for bit the effective weights, dead weights 0, the masks those of the checkpoint."""
    _check_names(folder, weight_map)
    prunable = set(masks.masked(reader))
    for spec in specs:
        with safe_open(folder / weight_map[spec.name], "pt") as file:  # reopened: its mapped pages count as memory
            written = file.get_tensor(spec.name)
            if written.dtype != spec.dtype or tuple(written.shape) != spec.shape:
                raise ExportError(f"{spec.name} was written as {written.dtype} {tuple(written.shape)}, not as {spec}.")
            written = written.reshape(-1)
            if spec.name not in reader.parameters:
                _same_bits(spec.name, written, reader.frozen(spec.name).reshape(-1))
                continue
            for start, weight in weight_chunks(reader, spec.name):
                part = written[start : start + len(weight)]
                _same_bits(spec.name, part, weight.to(spec.dtype))
                if spec.name in prunable:
                    keep = masks.keep_chunk(reader, spec.name, start, len(weight))
                    if torch.count_nonzero(part[keep == 0]):
                        raise ExportError(f"{spec.name}: a pruned weight was not written as zero.")
                advance(len(weight))
            del written
    if mask_sha256 is not None and masks.hash_masks(folder) != mask_sha256:
        raise ExportError(f"{folder / masks.FILE} does not hold the checkpoint's masks.")


def max_abs_logit_diff(
    reader: CheckpointReader, folder: Path, auto_model: Any, config: PretrainedConfig, dtype: torch.dtype
) -> float:
    """Largest difference between the folder loaded by stock code and a model filled from the checkpoint.

    Raises ExportError above LOGIT_TOLERANCE of the largest logit: then the config or a buffer is wrong.
    """
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        stock = auto_model.from_pretrained(folder, dtype=dtype)
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    found = _logits(stock)
    del stock
    expected = _logits(model_from_checkpoint(reader, auto_model, config, dtype))
    difference, largest = float((found - expected).abs().max()), float(expected.abs().max())
    if not difference <= LOGIT_TOLERANCE * largest:  # NaN too
        raise ExportError(f"stock code computes logits that differ by {difference:g} (the largest is {largest:g}).")
    return difference


def model_from_checkpoint(
    reader: CheckpointReader, auto_model: Any, config: PretrainedConfig, dtype: torch.dtype
) -> PreTrainedModel:
    """A model with the checkpoint's effective weights that never saw the exported files."""
    with no_init_weights():
        model = auto_model.from_config(config, dtype=dtype)
    model.tie_weights()
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name in reader.parameters:
            for start, weight in weight_chunks(reader, name):
                tensors[name].view(-1)[start : start + len(weight)].copy_(weight)
        for name in reader.buffers():
            tensors[name].copy_(reader.frozen(name))
    return model


def _logits(model: PreTrainedModel) -> Tensor:
    """(rows, ...) fp32 logits of seeded random token ids; one row at a time, for models without a pad token."""
    config = model.config.get_text_config()
    length = min(TOKENS, getattr(config, "max_position_embeddings", None) or TOKENS)
    ids = torch.randint(0, config.vocab_size, (ROWS, length), generator=torch.Generator().manual_seed(0))
    model.eval()
    with torch.no_grad():
        rows = [model(input_ids=row[None], attention_mask=torch.ones_like(row[None])).logits for row in ids]
    return torch.cat(rows).float()


def _check_names(folder: Path, weight_map: dict[str, str]) -> None:
    """The files and their index hold the named tensors and no others."""
    for file_name in sorted(set(weight_map.values())):
        with safe_open(folder / file_name, "pt") as file:
            expected = {name for name, where in weight_map.items() if where == file_name}
            if set(file.keys()) != expected:
                raise ExportError(f"{folder / file_name} holds other tensors than were written.")
    index = folder / "model.safetensors.index.json"
    if index.exists() and json.loads(index.read_text())["weight_map"] != weight_map:
        raise ExportError(f"{index} does not match the files.")


def _same_bits(name: str, written: Tensor, expected: Tensor) -> None:
    same = written.shape == expected.shape and torch.equal(
        written.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8)
    )
    if not same:
        raise ExportError(f"{name} was not written bit for bit; is the disk full or failing?")
