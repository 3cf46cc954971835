"""Some logits of an exported model, kept in export.json: what any later load of the folder must give again.

A library's new version may compute something else from the same files. Their hashes do not show it; these do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

KEPT = 8  # the largest logits of a row
TOLERANCE = 1e-4  # of the largest logit, or absolute where that is below 1: 30 times what fp32 rounds (verify.py)


def recorded(ids: Tensor, logits: Tensor) -> dict[str, Any]:
    """The record of `ids` (rows, tokens) and their `logits` (rows, classes), or (rows, tokens, classes) of a model that
    has some for each token: the largest KEPT at each row's last token."""
    values, classes = _last(logits).topk(min(KEPT, logits.shape[-1]))
    return {"ids": ids.tolist(), "classes": classes.tolist(), "values": values.tolist()}


def token_ids(record: Mapping[str, Any]) -> Tensor:
    """(rows, tokens) of a record. Raises KeyError, TypeError or ValueError where it is none."""
    ids = torch.tensor(record["ids"])
    if ids.dim() != 2 or ids.dtype != torch.int64 or not len(ids):
        raise ValueError("ids are not rows of tokens")
    return ids


def difference(record: Mapping[str, Any], logits: Tensor) -> tuple[float, float]:
    """(the largest difference between `logits` (rows, [tokens,] classes) of the same ids and the record, what may be).

    Raises KeyError, TypeError, ValueError or RuntimeError where it is no record of such logits.
    """
    expected = torch.tensor(record["values"], dtype=torch.float64)
    found = _last(logits).double().gather(-1, torch.tensor(record["classes"]))
    if found.shape != expected.shape or not expected.isfinite().all():
        raise ValueError("values are not the classes' finite numbers")
    return float((found - expected).abs().max()), TOLERANCE * max(1.0, float(expected.abs().max()))


def _last(logits: Tensor) -> Tensor:
    """(rows, classes): of each row's last token, where every token has logits."""
    return logits[:, -1] if logits.dim() == 3 else logits
