"""What the checks before a start have built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

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


def shown_label(label: str) -> str:
    """Quoted where it begins or ends with spaces, which nobody would see."""
    return label if label == label.strip() else repr(label)
