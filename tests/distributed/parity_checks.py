"""Proof 1 on ranks: every pruner on every layout, one start."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch.distributed as dist

from tests.distributed.harness import build, discard, main, make_config
from tests.distributed.layouts import ALL, layouts

LAYOUTS = layouts(
    *("zero1", "zero2", "zero3", "zero3 in sub-groups", "zero2 every key", "zero3 every key"),
    *("zero1 offload", "zero2 offload", "zero3 offload"),
)


QUICK = ("zero1", "zero3 in sub-groups", "zero2 every key", "zero3 offload")


def on_layouts(kinds: Sequence[str], among: Iterable[str]) -> dict[str, Any]:
    """{pruner, or "pruner fp32": {layout: result}}; `straddles`: whether a shard boundary cuts a 2:4 group."""
    results: dict[str, Any] = {}
    for kind in kinds:
        for layout in among:
            pruner, _, dtype = kind.partition(" ")
            config = make_config(pruner, engine__dtype=dtype or "bf16", **ALL[layout])
            trained = build(config.changed(pruners__weights__schedule=AT_ONCE) if kind in UNSHARDED else config)
            cuts = [
                s.start % 4
                for weight_pruner in trained.pruner.weight_pruners
                for x in weight_pruner.states
                for s in x.shard.segments
            ]
            trained.run(0, 12)
            trained.pruner.check()
            trained.pruner.check_finished()
            results.setdefault(kind, {})[layout] = trained.result() | {
                "straddles": any(any(c) for c in trained.pruner.layout.world.gather(cuts))
            }
            discard(trained)
    return results


EVERYWHERE = "movement"  # on all layouts
STAGES = ("zero1", "zero2", "zero3 in sub-groups")
CUT = (*STAGES, "zero3", "zero3 offload")  # of what shards cut: groups and whole matrices
UNSHARDED = ("wanda fp32", "alps fp32")  # calibrated, at ZeRO 0, too: there they are cut before any step
AT_ONCE = {"name": "one_shot", "start": 0}


def names(kind: str, world_size: int = 2) -> Sequence[str]:
    """The layouts of a pruner in the slow set."""
    if kind == EVERYWHERE and world_size == 2:
        return list(LAYOUTS)
    if kind in UNSHARDED:
        return ("zero0", *STAGES)
    return CUT if kind in ("n_of_m", "alps", "experts") else STAGES


def checks(kinds: list[str]) -> dict[str, Any]:
    """Each on its layouts."""
    world = dist.get_world_size()
    return {kind: found for one in kinds for kind, found in on_layouts([one], names(one, world)).items()}


if __name__ == "__main__":
    main(checks)
