"""Proof that an exported folder is the checkpoint's model: every bit of every tensor, and the logits of stock code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging

from pat.checkpoint.reader import CheckpointReader
from pat.export import masks
from pat.export.layout import Layout
from pat.export.loader import load
from pat.export.merged import MergedReader
from pat.export.recorded import recorded
from pat.export.source import Parts, weight_chunks
from pat.export.structures import Structures
from pat.export.writer import Spec
from pat.models import adapters, limits
from pat.schema import PeftConfig
from pat.zero.checkpoint_files import CheckpointError

ADVICE = "; `pat export --verify layers` names the first layer that differs"
LOGIT_LIMIT = 4 << 30  # bytes of weights up to which "auto" compares logits: two models are built for it
TOLERANCE = 1e-4  # absolute difference of logits in fp32; where fp32 rounds more than that, fp64 decides
# Of the largest logit, where gates are folded or adapters merged: then weights are rounded that the trained model does
# not have. `python tests/benchmarks/bench_rounding.py assets/minilm assets/smollm2` measured at most 3.0e-6, 1.2e-2 and
# 1.9e-3, and of a layer (streamed.py) 9.7e-8, 4.9e-3 and 6.1e-4.
ROUNDED_TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-1, torch.float16: 1e-2}
ROWS, TOKENS = 4, 32
TEXT = (  # Abraham Lincoln, 1863
    "Four score and seven years ago our fathers brought forth on this continent, a new nation, conceived in Liberty, "
    "and dedicated to the proposition that all men are created equal. Now we are engaged in a great civil war, testing "
    "whether that nation, or any nation so conceived and so dedicated, can long endure. We are met on a great "
    "battle-field of that war. We have come to dedicate a portion of that field, as a final resting place for those "
    "who here gave their lives that that nation might live. It is altogether fitting and proper that we should do this."
)


class ExportError(CheckpointError):
    """The written folder is not the checkpoint's model."""


def check_tensors(
    reader: CheckpointReader,
    folder: Path,
    specs: list[Spec],
    weight_map: dict[str, str],  # the file of each tensor
    mask_sha256: str | None,
    advance: Callable[[int], None],  # told the elements done
    structures: Structures,
    layout: Layout | None = None,  # None: the files have the model's own tensors
) -> None:
    """Reload every tensor: bit for bit the (cut) effective weights, dead weights 0, the masks the checkpoint's."""
    _check_names(folder, weight_map)
    layout, parts, cut = layout or Layout(), Parts(reader), structures.cut
    old = {} if cut is None else {cut.rename(name): name for name in reader.parameters}
    for spec in specs:
        with safe_open(folder / weight_map[spec.name], "pt") as file:  # reopened: its mapped pages count as memory
            written = file.get_tensor(spec.name)
            if written.dtype != spec.dtype or tuple(written.shape) != spec.shape:
                raise ExportError(f"{spec.name} was written as {written.dtype} {tuple(written.shape)}, not as {spec}.")
            written = written.reshape(-1)
            view = layout.view(spec)
            name = old.get(view.source, view.source)
            if name not in reader.parameters:
                _same_bits(spec.name, written, view.of(reader.frozen(name)).reshape(-1))
                continue
            if cut is not None:
                expected = view.of(cut.cut(name, reader.weight(name)))
                _same_bits(spec.name, written, expected.reshape(-1).to(spec.dtype))
                advance(len(written))
                continue
            start = 0
            for weight, keep in parts(view, name):
                part = written[start : start + len(weight)]
                _same_bits(spec.name, part, weight.to(spec.dtype))
                if keep is not None and torch.count_nonzero(part[keep == 0]):
                    raise ExportError(f"{spec.name}: a pruned weight was not written as zero.")
                start += len(weight)
                advance(len(weight))
            del written
    if mask_sha256 is not None and masks.hash_masks(folder) != mask_sha256:
        raise ExportError(f"{folder / masks.FILE} does not hold the checkpoint's masks.")


def max_abs_logit_diff(
    reader: CheckpointReader,
    folder: Path,
    auto_model: Any,
    config: PretrainedConfig,  # of the full shape
    dtype: torch.dtype,
    structures: Structures,
    peft: PeftConfig,
) -> tuple[float, dict[str, Any]]:
    """Largest difference between the folder, loaded by stock code, and a model filled from the checkpoint, on text; and
    the record of the folder's logits.

    Both compute in fp32 on weights of the written dtype. With structures the second is the gated model of the full
    shape; with adapters it has them, unmerged. Where sums of different lengths round too differently in fp32, as with
    huge activations, fp64 decides. Raises ExportError above a tolerance: then the config, a
    buffer, a cut or a merge is wrong.
    """
    ids, error = probe(folder, config), None
    for computed in (torch.float32, torch.float64):
        exported = logits(_reloaded(folder, auto_model, computed, structures.stock), ids)
        trained = reader.trained if isinstance(reader, MergedReader) else reader
        model = model_from_checkpoint(trained, auto_model, config, computed, dtype, peft)
        structures.gate_forward(model)
        expected = logits(model, ids)
        del model
        try:
            return tolerated(exported, expected, dtype, scaled(reader, structures), ADVICE), recorded(ids, exported)
        except ExportError as too_large:
            error = too_large
    assert error is not None
    raise error


def scaled(reader: CheckpointReader, structures: Structures) -> bool:
    """Whether weights are rounded anew: a gate that is not 0 or 1 is folded into them, or an adapter merged."""
    return isinstance(reader, MergedReader) or (structures.cut is not None and structures.cut.scales)


def tolerated(found: Tensor, expected: Tensor, dtype: torch.dtype, rounded: bool, advice: str = "") -> float:
    """The largest difference of logits. ExportError, with the advice, above the tolerance."""
    difference, largest = float((found - expected).abs().max()), float(expected.abs().max())
    tolerance = ROUNDED_TOLERANCE[dtype] * largest if rounded else TOLERANCE
    if not difference <= tolerance:  # NaN, too
        raise ExportError(
            f"stock code computes logits that differ from the trained model's by {difference:g}; {tolerance:g} is "
            f"allowed (the largest logit is {largest:g}){advice}."
        )
    return difference


def _reloaded(folder: Path, auto_model: Any, dtype: torch.dtype, stock: bool) -> PreTrainedModel:
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        if not stock:
            return load(folder, dtype=dtype)
        return auto_model.from_pretrained(folder, dtype=dtype, trust_remote_code=False)
    finally:
        if bars:
            transformers_logging.enable_progress_bar()


def model_from_checkpoint(
    reader: CheckpointReader,
    auto_model: Any,
    config: PretrainedConfig,
    dtype: torch.dtype,
    rounded: torch.dtype,
    peft: PeftConfig,
) -> PreTrainedModel:
    """A model with the checkpoint's effective weights, rounded, that never saw the exported files."""
    with no_init_weights():
        model = auto_model.from_config(config, dtype=dtype)
    model.tie_weights()
    if peft.r is not None:
        adapters.inject(model, peft, seed=0)  # all is overwritten
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name in reader.parameters:
            for start, weight in weight_chunks(reader, name):
                tensors[name].view(-1)[start : start + len(weight)].copy_(weight.to(rounded))
        for name in reader.buffers():
            tensors[name].copy_(reader.frozen(name))
    return model


def probe(folder: Path, config: PretrainedConfig) -> Tensor:
    """(rows, tokens) of a text; of its bytes, folded into the words, where no tokenizer knows it."""
    text_config = config.get_text_config()
    limit = limits.positions(config) or TOKENS
    ids: list[int] = []
    if (folder / "tokenizer_config.json").exists():
        ids = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)(
            TEXT, add_special_tokens=False, verbose=False
        )["input_ids"]
    if len(ids) < ROWS:
        ids = [byte % text_config.vocab_size for byte in TEXT.encode()]
    length = min(TOKENS, limit, len(ids) // ROWS)
    rows = torch.tensor(ids[: ROWS * length]).view(ROWS, length)
    if config.is_encoder_decoder and text_config.eos_token_id is not None:
        rows[:, -1] = text_config.eos_token_id  # T5 and BART classify by the last token of a text
    return rows


def logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """(rows, ...) fp64 logits; one row at a time, for models without a pad token."""
    model.eval()
    if model.dtype == torch.float64:
        model.set_experts_implementation("eager")  # the default one computes nothing in fp64
    with torch.no_grad():
        rows = [model(input_ids=row[None], attention_mask=torch.ones_like(row[None])).logits for row in ids]
    return torch.cat(rows).double()


def _check_names(folder: Path, weight_map: dict[str, str]) -> None:
    """The files and their index hold the named tensors and no others."""
    for file_name in sorted(set(weight_map.values())):
        with safe_open(folder / file_name, "pt") as file:
            expected = {name for name, where in weight_map.items() if where == file_name}
            if set(file.keys()) != expected:
                raise ExportError(f"{folder / file_name} holds other tensors than were written.")
    index = folder / "model.safetensors.index.json"
    if json.loads(index.read_text(encoding="utf-8"))["weight_map"] != weight_map:
        raise ExportError(f"{index} does not match the files.")


def _same_bits(name: str, written: Tensor, expected: Tensor) -> None:
    same = written.shape == expected.shape and torch.equal(
        written.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8)
    )
    if not same:
        raise ExportError(f"{name} was not written bit for bit; is the disk full or failing?")
