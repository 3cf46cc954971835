"""Judges the evaluations of a training by its envelope. The baseline is its dense model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pat.envelope.judge import evidence, judge
from pat.envelope.spec import Limit


def edges(limit: Limit, dense: float) -> dict[str, float]:
    """The worst value that each bound admits, of a metric that is `dense` for the dense model.

    drop: dense - drop    rise: dense + rise    ratio: ratio dense
    """
    at = {"drop": lambda by: dense - by, "rise": lambda by: dense + by, "ratio": lambda by: dense * by}
    return {name: at.get(name, float)(value) for name, value in limit.bounds().items()}


def figures(
    limits: Mapping[str, Limit],
    dense: Mapping[str, float],  # the dense model's metrics
    metrics: Mapping[str, float],
    higher_is_better: Mapping[str, bool],
    slices: Collection[str] = (),  # which of the metrics are those of a slice
) -> dict[str, Any]:
    """Plain values: inside; the limited metrics; the worst that each may be; and of those outside, that in words."""
    worst: dict[str, float] = {}
    outside: dict[str, str] = {}
    for metric, limit in limits.items():
        higher = higher_is_better[metric]
        found = edges(limit, dense[metric]).values()
        edge = worst[metric] = max(found) if higher else min(found)
        known = evidence(metrics[metric], dense[metric])
        checks = judge(metric, limit, known, higher, of_slice=metric in slices)
        if not all(check.passed for check in checks):
            outside[metric] = f"{'at least' if higher else 'at most'} {edge:.6g}"
    return {
        "inside": not outside,
        "metrics": {metric: metrics[metric] for metric in limits},
        "limits": worst,
        "outside": outside,
    }
