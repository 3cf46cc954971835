"""Proof 2 on ranks: the shard implementation against the naive one, fp32, gradient accumulation, step by step."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from pat.training import learning_rate
from tests import oracle
from tests.distributed.harness import PRUNERS, STEPS, batch, build, build_model, discard, main, make_config
from tests.distributed.layouts import layouts

LAYOUTS = layouts("zero0", "zero1", "zero2", "zero3", "zero2 offload")
KINDS = ("movement", "magnitude", "matrix", "taylor", "soft_movement")
# A threshold over all shards, over those of each matrix, and one that is learned.
QUICK = [("movement", "zero1"), ("movement", "zero3"), ("matrix", "zero3"), ("soft_movement", "zero1")]
COMMON: dict[str, Any] = {"engine__dtype": "fp32", "train__micro_batch_size": 2}  # accumulation 2 on 2 ranks


def cases(which: str) -> list[tuple[str, str]]:
    """(pruner, layout) of the quick or the slow set."""
    every = [(kind, layout) for kind in KINDS for layout in LAYOUTS]
    return QUICK if which == "quick" else [case for case in every if case not in QUICK]


def expected(kind: str) -> tuple[list[oracle.Record], Any]:
    """The naive run on whole batches, and its config."""
    config = make_config(kind, engine__zero_stage=0, **COMMON)
    trained = build(config)
    weight_pruner, spec = trained.pruner.weight_pruners[0], PRUNERS[kind]
    criterion = weight_pruner.criterion
    settings = oracle.Settings(
        sparsity=spec["sparsity"],
        criterion=criterion.name,
        scope=spec.get("scope", "global"),
        lr=lambda t: config.optim.lr * learning_rate.lr_factor(t, STEPS, config.optim),
        weight_decay=config.optim.weight_decay,
        max_norm=config.engine.gradient_clipping,
        penalty=criterion.coefficient if criterion.name == "soft_movement" else lambda progress: 0.0,
        **{k: getattr(criterion, k) for k in ("rate", "tau", "decay", "prior", "prior_steps") if hasattr(criterion, k)},
    )
    discard(trained)

    def everyones(t: int) -> list[torch.Tensor]:
        micro = [batch(t, m, config) for m in range(2)]
        parts = [[torch.empty_like(m) for _ in range(dist.get_world_size())] for m in micro]
        for m, gathered in zip(micro, parts, strict=True):
            dist.all_gather(gathered, m.contiguous())
        return [p for gathered in parts for p in gathered]

    records = oracle.run(
        lambda: build_model(config),
        lambda forward, tokens: forward(input_ids=tokens, labels=tokens).loss,
        [everyones(t) for t in range(STEPS)],
        list(weight_pruner.shapes),
        weight_pruner.timeline,
        settings,
    )
    return records, weight_pruner


def checks(which: list[str]) -> dict[str, Any]:
    """{pruner: {layout: [[masks equal, greatest difference of a weight, relative difference of the norm], ...]}} of the
    quick or the slow set."""
    said: dict[str, Any] = {}
    wanted = cases(which[0])
    for kind in dict.fromkeys(kind for kind, _ in wanted):
        records, _ = expected(kind)
        for layout in [layout for other, layout in wanted if other == kind]:
            trained = build(make_config(kind, **(COMMON | LAYOUTS[layout])))
            pruner, zero = trained.pruner, trained.pruner.layout
            lines = []
            for t, record in enumerate(records):
                trained.run(t, t + 1)
                equal, gap = True, 0.0
                for name, weight in record.weights.items():
                    ours = zero.assemble(name, zero.pieces(name), torch.float32)
                    gap = max(gap, float((ours - weight.flatten()).abs().max()))
                    if name in record.masks:
                        keep = zero.assemble(name, pruner.keep_pieces(name), torch.uint8)
                        equal &= bool((keep.bool() == record.masks[name].flatten()).all())
                norm = abs(float(trained.stats.norm) / record.norm - 1)
                lines.append([equal, gap, norm])
            said.setdefault(kind, {})[layout] = lines
            discard(trained)
    return said


if __name__ == "__main__":
    main(checks)
