"""What the peers' scripts share: a folder in, in fp32 as our calibration computes, and out, in its own dtype."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer


def load(folder: str) -> tuple[Any, torch.dtype]:
    """(the model, the dtype of its weights on disk)."""
    config = AutoConfig.from_pretrained(folder)
    classifies = any(name.endswith("ForSequenceClassification") for name in config.architectures or [])
    auto = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    stored: Any = auto.from_pretrained(folder, dtype="auto")
    dtype = stored.dtype
    return stored.float().eval(), dtype


def read_samples(file: str) -> list[list[int]]:
    """The tokens of each sample."""
    return [row["input_ids"] for row in read_rows(file)]


def read_rows(file: str) -> list[dict[str, Any]]:
    """Each sample, with its `label` where the task has one."""
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def save(model: Any, source: str, out: str, dtype: torch.dtype) -> None:
    """A Hugging Face folder with the tokenizer of `source`."""
    model.to(dtype).save_pretrained(out)
    AutoTokenizer.from_pretrained(source).save_pretrained(out)
