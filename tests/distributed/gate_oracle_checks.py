"""Gates on ranks against the naive implementation, on models whose right units are known, in fp32, step by step."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from pat import engine as ds
from tests import planted
from tests.distributed.harness import build, discard, main
from tests.distributed.layouts import layouts
from tests.planted import Case

LAYOUTS = layouts("zero1", "zero2", "zero3")
CASES = {
    str(case): case
    for case in (
        Case("taylor", ("ffn", "kv_groups")),
        Case("fisher", ("layers",), "parameters"),
        Case("movement", ("heads",), options={"fade": 10_000}),
        Case("magnitude", ("ffn", "kv_groups"), "memory"),
        Case("activation", ("attention_layers", "mlp_layers")),
        Case("similarity", ("layers",)),
    )
}


def compared(case: Case, overrides: dict[str, Any], records: list[Any]) -> list[list[Any]]:
    """[flags equal, greatest difference of gates, of scores in their own size, of weights] after every step."""
    config = case.config()
    config.engine.world_size, config.engine.zero_stage = dist.get_world_size(), overrides["engine__zero_stage"]
    trained = build(config, planted.student(case))
    engine, pruner, shards = trained.engine, trained.pruner, trained.pruner.shards
    (gate,) = pruner.gates
    ds.set_lr(engine, 1.0)
    lines = []
    for record, micro_batches in zip(records, planted.micro_batches(case), strict=True):
        z, keep = gate.state.z.clone(), gate.state.keep.clone()
        engine.backward(planted.loss(engine, micro_batches[dist.get_rank()], record.step))
        before = gate.state.score
        pruner.step(record.step)
        score = before if case.method == "magnitude" else gate.state.score
        expected = planted.joined(case, record.scores)
        gap = 0.0
        if record.step + 1 != case.oracle().hard:  # then the next step's weights are folded already
            for name, weight in record.weights.items():
                ours = shards.assemble(name, shards.pieces(name), torch.float32)
                gap = max(gap, float((ours - weight.flatten()).abs().max()))
        lines.append(
            [
                torch.equal(keep, planted.joined(case, record.keep)),
                float((z - planted.joined(case, record.z)).abs().max()),
                float((score - expected).abs().max() / expected.abs().max().clamp(min=1e-30)),
                gap,
            ]
        )
    pruner.check()
    pruner.check_finished()
    lines.append([torch.equal(gate.state.keep, planted.joined(case, planted.right(case))), 0.0, 0.0, 0.0])
    discard(trained)
    return lines


def checks(names: list[str]) -> dict[str, Any]:
    """{case: {layout: lines}}."""
    said: dict[str, Any] = {}
    for name in names:
        records = planted.expected(CASES[name])
        said[name] = {layout: compared(CASES[name], LAYOUTS[layout], records) for layout in LAYOUTS}
    return said


if __name__ == "__main__":
    main(checks)
