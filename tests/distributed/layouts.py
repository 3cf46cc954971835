"""The layouts on which ranks are tested: what each changes in a config, by one name everywhere."""

from __future__ import annotations

from typing import Any

Layouts = dict[str, dict[str, Any]]


def _zero(suffix: str, *stages: int, **overrides: Any) -> Layouts:
    return {f"zero{stage}{suffix}": {"engine__zero_stage": stage, **overrides} for stage in stages}


def _keys(suffix: str, stage: int, more: dict[str, Any] | None = None, **settings: Any) -> Layouts:
    """DeepSpeed's keys: these `settings` of ZeRO, and `more`."""
    return _zero(suffix, stage, engine__deepspeed={"zero_optimization": settings} | (more or {}))


# Together all of pat.zero.config_keys.TESTED, away from DeepSpeed's defaults (overlap_comm: False; at ZeRO 3 True).
_EVERY = {"steps_per_print": 2, "wall_clock_breakdown": True}
_BUCKETS = {"reduce_bucket_size": 1700, "allgather_bucket_size": 900, "sub_group_size": 1500}
_ZERO3 = {
    "stage3_gather_16bit_weights_on_model_save": True,
    "stage3_max_live_parameters": 3000,
    "stage3_max_reuse_distance": 2000,
    "stage3_param_persistence_threshold": 0,
    "stage3_prefetch_bucket_size": 500,
}

ALL = {
    **_zero("", 0, 1, 2, 3),
    **_zero(" fp32", 0, 1, 2, 3, engine__dtype="fp32"),
    **_zero(" offload", 1, 2, 3, engine__offload_optimizer=True),
    **_zero(" accumulation", 2, 3, train__micro_batch_size=2),
    **_keys(" in sub-groups", 3, sub_group_size=1500),
    **_keys(" every key", 2, _EVERY, **_BUCKETS, overlap_comm=True),
    **_keys(" every key", 3, _EVERY, **_BUCKETS, **_ZERO3, overlap_comm=False),
    **_keys(" nothing persistent", 3, stage3_param_persistence_threshold=0),  # else small ones stay gathered once used
}


def layouts(*names: str) -> Layouts:
    """Those of these names, in this order."""
    return {name: ALL[name] for name in names}
