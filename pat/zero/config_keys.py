"""Which of DeepSpeed's keys a user may set: an allow-list of what was tested under pruning.

DeepSpeed itself ignores a key that it does not know, and many that it knows change what the optimizer steps. So an
untested key is refused until the user insists with engine.deepspeed_untested, and one that is known to prune the wrong
weights is always refused. Keys are written with dots: `zero_optimization.reduce_bucket_size`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from pat.common.text import did_you_mean
from pat.common.typed import is_mapping

# The bits stay the same under these, with values other than DeepSpeed's defaults: tests/distributed/layouts.py
TESTED = (
    "steps_per_print",
    "wall_clock_breakdown",
    "zero_optimization.allgather_bucket_size",
    "zero_optimization.overlap_comm",
    "zero_optimization.reduce_bucket_size",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save",
    "zero_optimization.stage3_max_live_parameters",
    "zero_optimization.stage3_max_reuse_distance",
    "zero_optimization.stage3_param_persistence_threshold",
    "zero_optimization.stage3_prefetch_bucket_size",
    "zero_optimization.sub_group_size",
)

# Keys that pat sets in its own loop and other trainers set for themselves.
OF_THE_CALLER = (
    "bf16.enabled",
    "communication_data_type",
    "fp16.enabled",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "zero_optimization.offload_optimizer.device",
    "zero_optimization.stage",
)

# DeepSpeed's key -> pat's own for the same.
PATS_OWN = {
    "activation_checkpointing": "engine.activation_checkpointing",
    "communication_data_type": "engine.reduce_dtype",
    "zero_optimization.offload_optimizer": "engine.offload_optimizer",
}

# Settings under which flat shards do not follow the offsets that they claim, or move where pat cannot see them:
# key, whether a value is refused, why.
_OUTSIDE = "would step part of the optimizer outside pat's hooks"
_OFFLOAD = "zero_optimization.offload_optimizer"
BREAKS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("zero_optimization.round_robin_gradients", bool, "would prune other weights than it names: offsets are shuffled"),
    (f"{_OFFLOAD}.ratio", lambda v: float(v) < 1, _OUTSIDE),
    (f"{_OFFLOAD}.super_offload", bool, _OUTSIDE),
    (f"{_OFFLOAD}.device", lambda v: v == "nvme", "moves shards to NVMe, where they cannot be masked; use cpu"),
    (
        "zero_optimization.offload_param.device",
        lambda v: v == "nvme",
        "moves parameters to NVMe, away from their masks",
    ),
    ("zero_optimization.zenflow", bool, _OUTSIDE),
    ("zero_optimization.zero_hpz_partition_size", lambda v: int(v) > 1, "keeps second shards of unpruned weights"),
    ("zero_optimization.mics_shard_size", lambda v: int(v) > 0, "shards over other ranks than pat counts"),
    ("zero_optimization.elastic_checkpoint", bool, "writes files that pat does not read; it re-shards its own"),
    ("data_types.grad_accum_dtype", bool, "makes DeepSpeed use an optimizer wrapper that pat does not know"),
    ("optimizer", bool, "belongs to pat: set optim.*"),
    ("scheduler", bool, "belongs to pat: set optim.lr_schedule and optim.warmup"),
    ("tensor_parallel", bool, "splits weights in a way that pat does not know"),
    ("pipeline", bool, "splits the model in a way that pat does not know"),
)


def refuse(theirs: Mapping[str, Any], where: str = "engine.deepspeed", own: Collection[str] = ()) -> None:
    """ValueError for a key under which the wrong weights would be pruned; `own` keys are the caller's."""
    for key, unsafe, why in BREAKS:
        value = _at(theirs, key)
        if key not in own and value not in (None, "auto") and unsafe(value):
            raise ValueError(f"{where} sets {key}={value}, which pat does not support: it {why}")


def check(theirs: Mapping[str, Any], ours: Mapping[str, Any], insisted: Sequence[str]) -> None:
    """ValueError for a key that was not tested, is not one that pat sets (`ours`), and is not `insisted` on."""
    refuse(theirs)
    given = dict(leaves(theirs))
    for key in insisted:
        if not any(_within(name, key) for name in given):
            raise ValueError(
                f"engine.deepspeed_untested names {key}, which engine.deepspeed does not set; it sets "
                f"{', '.join(given) or 'nothing'}: correct the name, or leave it out"
            )
    for key in untested(theirs):
        if _at(ours, key) is None and not any(_within(key, name) for name in insisted):
            raise ValueError(_not_tested(key, given[key]))


def untested(theirs: Mapping[str, Any], own: Collection[str] = ()) -> list[str]:
    """The keys given that are neither tested, nor `own`, nor switch off what would break pruning."""
    known = {*TESTED, *own}
    return [
        key
        for key, value in leaves(theirs)
        if value != "auto" and not any(_within(key, name) for name in known) and not _switched_off(key, value)
    ]


def leaves(mapping: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """(key with dots, value) of every value that is not a mapping, and of empty mappings."""
    for key, value in mapping.items():
        if is_mapping(value) and value:
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _not_tested(key: str, value: Any) -> str:
    own = next((ours for name, ours in PATS_OWN.items() if _within(key, name)), None)
    return (
        f"engine.deepspeed sets {key}={value}, with which pruning was never tested"
        + (f": set {own} instead" if own else f"; allowed: {', '.join(TESTED)}{did_you_mean(key, TESTED)}")
        + f". To take it untested: engine.deepspeed_untested=[{key}]"
    )


def _switched_off(key: str, value: Any) -> bool:
    if key.endswith(".device"):
        return value == "none"
    return any(name == key and not unsafe(value) for name, unsafe, _ in BREAKS)


def _within(key: str, name: str) -> bool:
    """Whether `key` is `name`, or stands under it."""
    return f"{key}.".startswith(f"{name}.")


def _at(mapping: Mapping[str, Any], key: str) -> Any:
    value: Any = mapping
    for part in key.split("."):
        value = value.get(part) if is_mapping(value) else None
    return value
