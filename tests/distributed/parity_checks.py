"""Proof 1 on ranks: every pruner on every layout, one start."""

from __future__ import annotations

from typing import Any

from tests.distributed.harness import build, discard, main, make_config

LAYOUTS: dict[str, dict[str, Any]] = {
    "zero1": {"engine__zero_stage": 1},
    "zero2": {"engine__zero_stage": 2},
    "zero3": {"engine__zero_stage": 3},
    "zero3 in sub-groups": {
        "engine__zero_stage": 3,
        "engine__deepspeed": {"zero_optimization": {"sub_group_size": 1500}},
    },
    "zero1 offload": {"engine__zero_stage": 1, "engine__offload_optimizer": True},
    "zero2 offload": {"engine__zero_stage": 2, "engine__offload_optimizer": True},
    "zero3 offload": {"engine__zero_stage": 3, "engine__offload_optimizer": True},
}


def checks(kinds: list[str]) -> dict[str, Any]:
    """{pruner: {layout: result}}; `straddles`: whether a shard boundary cuts a 2:4 group."""
    results: dict[str, Any] = {}
    for kind in kinds:
        for layout, overrides in LAYOUTS.items():
            trained = build(make_config(kind, **overrides))
            cuts = [s.start % 4 for mask in trained.pruner.masks for x in mask.states for s in x.shard.segments]
            trained.run(0, 12)
            trained.pruner.check()
            trained.pruner.check_finished()
            results.setdefault(kind, {})[layout] = trained.result() | {
                "straddles": any(any(c) for c in trained.pruner.shards.world.gather(cuts))
            }
            discard(trained)
    return results


if __name__ == "__main__":
    main(checks)
