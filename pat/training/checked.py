"""What the checks before a start have built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset

from pat.data.prepare import PreparedData
from pat.pruning.pruner import Pruner

SHOWN_LABELS = 8  # of many


@dataclass(frozen=True)
class Checked:
    """Everything built by the checks before a start, so that nothing is built twice."""

    prepared: PreparedData
    model: torch.nn.Module  # on the meta device
    pruner: Pruner  # attached to it
    head: Sequence[str] = ()  # what becomes of a pretrained head
    strange: Sequence[str] = ()  # what looks wrong in the data


def label_counts(rows: Dataset, names: Sequence[str]) -> npt.NDArray[np.int64]:
    """Samples of each label."""
    column: Any = rows.select_columns("label").with_format("arrow")[:]
    return np.bincount(column["label"].to_numpy(), minlength=len(names))


def shown_label(label: str) -> str:
    """Quoted where it begins or ends with spaces, which nobody would see."""
    return label if label == label.strip() else repr(label)
