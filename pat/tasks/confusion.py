"""Which classes a classifier confuses: counts that add up over batches and ranks, and metrics computed from them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# c classes; M[i, j] samples of class i that were taken for class j

MATRIX = 64  # classes up to which the whole matrix is kept; nobody reads a larger one


def counted(
    labels: Tensor,  # (b,)
    answers: Tensor,  # (b,)
    weight: Tensor,  # (b,) fp64, 0 or 1
    c: int,
) -> Tensor:
    """(c, c) fp64: M; with more than MATRIX classes (3, c): M[i, i], samples of class i, samples taken for it."""
    if c <= MATRIX:
        flat = torch.zeros(c * c, dtype=torch.float64, device=labels.device)
        return flat.index_add_(0, labels * c + answers, weight).view(c, c)
    counts = torch.zeros(3, c, dtype=torch.float64, device=labels.device)
    counts[0].index_add_(0, labels, weight * (labels == answers))
    counts[1].index_add_(0, labels, weight)
    counts[2].index_add_(0, answers, weight)
    return counts


def by_class(counts: Tensor) -> dict[str, Tensor]:
    """(c,) each: right, support, answered, precision, recall, f1. What is 0 / 0 is 0, as in scikit-learn."""
    if len(counts) == counts.shape[1]:
        right, support, answered = counts.diagonal(), counts.sum(1), counts.sum(0)
    else:
        right, support, answered = counts
    return {
        "right": right,
        "support": support,
        "answered": answered,
        "precision": right / answered.clamp(min=1),
        "recall": right / support.clamp(min=1),
        "f1": 2 * right / (support + answered).clamp(min=1),
    }


def macro_f1(counts: Tensor) -> float:
    """Mean F1 over the classes that occur, as labels or as answers."""
    scores = by_class(counts)
    occurs = (scores["support"] + scores["answered"]) > 0
    return float(scores["f1"][occurs].mean())


def table(counts: Tensor, names: list[str]) -> dict[str, Any]:
    """Plain values for summary.json: a mapping for each class, and the matrix where it was kept."""
    scores = by_class(counts)
    classes = {
        name: {
            **{key: float(scores[key][i]) for key in ("precision", "recall", "f1")},
            "samples": int(scores["support"][i]),
        }
        for i, name in enumerate(names)
    }
    matrix = {"confusion": counts.long().tolist()} if len(counts) == counts.shape[1] else {}
    return {"classes": classes, **matrix}
