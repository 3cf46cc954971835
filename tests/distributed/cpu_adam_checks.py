"""DeepSpeed's CPUAdam steps with a pruner, with and without offload, against torch's AdamW on the same layout."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from pat.zero.layouts import Piece
from tests.distributed.harness import STEPS, Trained, build, discard, main, make_config, pieces_of
from tests.distributed.layouts import layouts

PAIRS = {  # the layout, and what CPUAdam needs there; a config with CPUAdam and without offload is refused
    "zero2": {"optim__name": "cpu_adam"},
    "zero1 offload": {"optim__name": "cpu_adam"},
    "zero3 offload": {"optim__name": "cpu_adam"},
}
SOFT = STEPS - 5  # steps, after which pruned weights may still come back


def checks(arguments: list[str]) -> dict[str, Any]:
    """Per layout what CPUAdam left, beside AdamW's masks and weights."""
    said: dict[str, Any] = {}
    for name, settings in PAIRS.items():
        changes = layouts(name)[name]
        found = {kind: _state(changes | more) for kind, more in {"adamw": {}, "cpu_adam": settings}.items()}
        ours, theirs = found["cpu_adam"], found["adamw"]
        agree = {n: ours["keep"][n] == theirs["keep"][n] for n in ours["keep"]}
        same = sum(int(flags.sum()) for flags in agree.values())
        total = sum(flags.numel() for flags in agree.values())
        gaps = [(ours["weight"][n] - theirs["weight"][n]).flatten()[agree[n]].abs().max() for n in agree]
        gap = max(map(float, gaps))  # of weights with the same flag: one with another is 0 on one side only
        said[name] = {kind: one["said"] for kind, one in found.items()} | {"same": same / total, "gap": gap}
    return said


def _state(changes: dict[str, Any]) -> dict[str, Any]:
    """Flags and weights by parameter after the soft phase; in `said` what must hold at the end."""
    trained = build(make_config("movement", **changes))
    trained.run(0, SOFT)
    layout = trained.pruner.layout
    names = sorted(trained.pruner.owner)
    keep = {name: _keep(trained, name) for name in names}
    weight = {name: layout.whole(name).float() for name in names}
    trained.run(SOFT, STEPS)
    trained.pruner.check_finished()
    alive: Counter[str] = Counter(dict.fromkeys(("shard", "forward", "exp_avg", "exp_avg_sq"), 0))
    for name in names:
        gone = _keep(trained, name) == 0
        segments = [s for shard in layout.shards for s in shard.segments if s.name == name]
        seen = [Piece(s.start, layout.forward_segment(s)) for s in segments]
        alive["shard"] += int(layout.whole(name).flatten()[gone].count_nonzero())
        alive["forward"] += int(layout.assemble(name, seen, torch.float32)[gone].count_nonzero())
        for kind in ("exp_avg", "exp_avg_sq"):
            moment = layout.assemble(name, pieces_of(trained, kind, name), torch.float32)
            alive[kind] += int(moment[gone].count_nonzero())
            alive[f"{kind} kept"] += int(moment[~gone].count_nonzero())
    said = {"alive": alive, "class": type(layout.base).__name__, "sparsity": trained.pruner.totals.sparsity}
    discard(trained)
    return {"keep": keep, "weight": weight, "said": said}


def _keep(trained: Trained, name: str) -> torch.Tensor:
    """The flags of a parameter. Collective."""
    return trained.pruner.layout.assemble(name, trained.pruner.keep_pieces(name), torch.uint8)


if __name__ == "__main__":
    main(checks)
