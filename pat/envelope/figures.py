"""The figures that can be limited: which way each is better, and where it is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from pat.common import scan

SAMPLES, MIX, PROFILE, MODEL = "samples", "mix", "profile", "model"  # sources


@dataclass(frozen=True)
class Figure:
    """A figure that can be limited."""

    higher_is_better: bool
    sources: tuple[str, ...]  # the first one asked counts
    unit: str = ""  # where its name does not say it


SHARES = frozenset(  # between 0 and 1
    {"accuracy", "macro_f1", "f1", "precision", "recall", "passed", "calibration_error", "sparsity"}
)

_OTHERS: dict[str, Figure] = {
    "calibration_error": Figure(False, (MIX, SAMPLES)),
    "passed": Figure(True, (MIX,)),
    "reference_loss": Figure(False, (MIX,)),
    "latency_p50": Figure(False, (PROFILE,), "s"),
    "latency_p95": Figure(False, (PROFILE,), "s"),
    "latency_p99": Figure(False, (PROFILE,), "s"),
    "time_to_first_token_p50": Figure(False, (PROFILE,), "s"),
    "time_to_first_token_p95": Figure(False, (PROFILE,), "s"),
    "time_to_first_token_p99": Figure(False, (PROFILE,), "s"),
    "tokens_per_s": Figure(True, (PROFILE,)),
    "peak_memory_bytes": Figure(False, (PROFILE,)),
    "cost_per_million_tokens": Figure(False, (PROFILE,)),
    "parameters": Figure(False, (MODEL,)),
    "nonzero_parameters": Figure(False, (MODEL,)),
    "bytes": Figure(False, (MODEL,)),
    "sparsity": Figure(True, (MODEL,)),
}


def others() -> Mapping[str, Figure]:
    """Figures other than a task's metrics: of prompts, of a profile, of the finished model."""
    return _OTHERS


def with_unit(shown: str, check: str) -> str:
    """A value of the figure that a check FIGURE.BOUND is about, with the figure's unit where it has one."""
    figure = _OTHERS.get(check.partition(".")[0])
    return f"{shown} {figure.unit}" if figure is not None and figure.unit else shown


@cache
def figures() -> Mapping[str, Figure]:
    """Every figure by its name: the metrics of the tasks, as their files declare them, and the others."""
    of_tasks = scan.declared_mappings("pat.tasks", "directions")
    return {name: Figure(higher, (SAMPLES,)) for name, higher in of_tasks.items()} | _OTHERS
