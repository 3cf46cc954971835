"""The layouts on which ranks are tested: what each changes in a config, by one name everywhere."""

from __future__ import annotations

from typing import Any

Layouts = dict[str, dict[str, Any]]


def _zero(suffix: str, *stages: int, **overrides: Any) -> Layouts:
    return {f"zero{stage}{suffix}": {"engine__zero_stage": stage, **overrides} for stage in stages}


def _zero3(suffix: str, **settings: Any) -> Layouts:
    return _zero(suffix, 3, engine__deepspeed={"zero_optimization": settings})


ALL = {
    **_zero("", 0, 1, 2, 3),
    **_zero(" fp32", 0, 1, 2, 3, engine__dtype="fp32"),
    **_zero(" offload", 1, 2, 3, engine__offload_optimizer=True),
    **_zero(" accumulation", 2, 3, train__micro_batch_size=2),
    **_zero3(" in sub-groups", sub_group_size=1500),
    **_zero3(" nothing persistent", stage3_param_persistence_threshold=0),  # else small ones stay gathered once used
}


def layouts(*names: str) -> Layouts:
    """Those of these names, in this order."""
    return {name: ALL[name] for name in names}
