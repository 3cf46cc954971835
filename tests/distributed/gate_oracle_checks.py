"""Gates on ranks against the naive implementation, on models whose right units are known, in fp32, step by step.

By pat's own loop, by that loop with a teacher, and by a loop of somebody else's that pat is attached to.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pat.models import tokenizers
from pat.pruning.pruner import Pruner
from pat.tasks import base
from pat.training import teacher
from pat.zero import engine as ds
from tests import planted, planted_loops
from tests.distributed.harness import Trained, build, discard, from_rank_0, main
from tests.distributed.layouts import layouts
from tests.gate_lagrangian import LEARNED
from tests.planted import SMOOTHED, Case

LAYOUTS = layouts("zero1", "zero2", "zero3")
OWN = {
    str(case): case
    for case in (
        Case("taylor", ("ffn", "kv_groups")),
        Case("fisher", ("layers",), "parameters"),
        Case("movement", ("heads",), options={"fade": 10_000}),
        Case("magnitude", ("ffn", "kv_groups"), "memory"),
        Case("activation", ("attention_layers", "mlp_layers")),
        Case("similarity", ("layers",)),
        Case("pair_similarity", ("layers",)),
        Case("l0", ("ffn", "kv_groups"), options=SMOOTHED),
        Case("smooth", ("ffn", "kv_groups"), "parameters", SMOOTHED, per_layer=True),
    )
}
ATTACHED = {"attached, in two micro-batches a rank": Case("taylor", ("ffn", "kv_groups"))}
TAUGHT = {"with a teacher": Case("taylor", ("ffn",))}
CASES = {**OWN, **ATTACHED, **TAUGHT}
RANKED, *_ = OWN
(LEARNT,) = (name for name, case in OWN.items() if case.method == "l0")
QUICK = [(RANKED, "zero1"), (LEARNT, "zero3"), (next(iter(ATTACHED)), "zero2"), (next(iter(TAUGHT)), "zero3")]


def cases(which: str) -> list[tuple[str, str]]:
    """(case, layout) of the quick or the slow set."""
    stages = {name: LAYOUTS if name in (RANKED, LEARNT) else ("zero1", "zero3") for name in CASES}
    every = [(name, layout) for name in CASES for layout in stages[name]]
    return QUICK if which == "quick" else [pair for pair in every if pair not in QUICK]


@dataclass
class Loop:
    """An engine with its pruner, and how its loop makes a step."""

    engine: Any
    pruner: Pruner
    step: Callable[[int, list[dict[str, torch.Tensor]]], Any]  # of step t: this rank's micro-batches


def own(case: Case, stage: int, teachers: Path | None = None) -> Loop:
    """Pat's loop, with the teacher that is saved in a folder if there is one."""
    config = case.config().changed(engine__world_size=dist.get_world_size(), engine__zero_stage=stage)
    trained = build(config, planted.student(case))
    engine = trained.engine
    ds.set_lr(engine, 1.0)
    distiller = None
    if teachers is not None:
        config = config.changed(distill=planted_loops.distillation(str(teachers)))
        task, tokenizer = base.build({"name": "causal_lm"}), tokenizers.byte_tokenizer()
        shape, ds_config = engine.module.config, ds.deepspeed_config(config)
        distiller = teacher.build(config, task, tokenizer, shape, ds_config, engine.device)

    def step(t: int, micro_batches: list[dict[str, torch.Tensor]]) -> None:
        (batch,) = micro_batches
        if distiller is None:
            engine.backward(planted.loss(engine, batch, t))
        else:
            engine.backward(distiller.loss(engine, planted_loops.labelled(batch), t))
        trained.pruner.step(t)

    return Loop(engine, trained.pruner, step)


def attached(case: Case, stage: int) -> Loop:
    """A loop on deepspeed.initialize, as a user has it."""
    pruning = planted_loops.attach_to(
        case, planted.student(case), train_micro_batch_size_per_gpu=1, gradient_accumulation_steps=2,
        zero_optimization={"stage": stage},
    )  # fmt: skip
    engine, pruner = pruning.engine, pruning.pruner
    assert pruner is not None

    def step(t: int, micro_batches: list[dict[str, torch.Tensor]]) -> None:
        for batch in micro_batches:
            engine.backward(planted.loss(engine, batch, t))
            engine.step()

    return Loop(engine, pruner, step)


def compared(case: Case, loop: Loop, records: list[Any], micro: int) -> list[list[Any]]:
    """[flags equal, greatest difference of gates, of scores in their own size, of weights, of folded ones] after every
    step of so many micro-batches on each rank."""
    pruner, layout, line = loop.pruner, loop.pruner.layout, case.oracle()
    (structure_pruner,), world = pruner.structure_pruners, dist.get_world_size()
    lines = []
    for record, micro_batches in zip(records, planted.micro_batches(case, micro * world), strict=True):
        z, keep, before = (
            structure_pruner.state.z.clone(),
            structure_pruner.state.keep.clone(),
            structure_pruner.state.score,
        )
        if case.method in LEARNED and line.start <= record.step < line.hard:
            assert structure_pruner.multiplied is not None
            z = structure_pruner.multiplied.clone()  # a sample
        loop.step(record.step, micro_batches[dist.get_rank() :: world])
        score = before if case.method == "magnitude" else structure_pruner.state.score
        expected = planted.joined(case, record.scores)
        scores = float((score - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
        if case.method in LEARNED and record.step + 1 == line.start:
            scores = 0.0  # the logits are those with which the next step begins
        gap = 0.0
        if record.step + 1 != line.hard:  # then the next step's weights are folded already
            for name, weight in record.weights.items():
                ours = layout.assemble(name, layout.pieces(name), torch.float32)
                gap = max(gap, float((ours - weight.flatten()).abs().max()))
        hard = record.step >= line.hard
        lines.append(
            [
                torch.equal(keep, planted.joined(case, record.keep)),
                float((z - planted.joined(case, record.z)).abs().max()),
                scores,
                0.0 if hard else gap,
                gap if hard else 0.0,
            ]
        )
    pruner.check()
    pruner.check_finished()
    lines.append([torch.equal(structure_pruner.state.keep, planted.joined(case, planted.right(case))), *[0.0] * 4])
    return lines


def checks(which: list[str]) -> dict[str, Any]:
    """{case: {layout: lines}} of the quick or the slow set."""
    said: dict[str, Any] = {}
    wanted = cases(which[0])
    with tempfile.TemporaryDirectory() as folder:
        teachers = Path(from_rank_0(folder))
        for name in dict.fromkeys(name for name, _ in wanted):
            case, right = CASES[name], planted.teacher(CASES[name])
            if name in TAUGHT and dist.get_rank() == 0:
                right.save_pretrained(teachers)
            dist.barrier()
            loss = planted_loops.taught_by(right) if name in TAUGHT else planted.loss
            records, said[name] = planted.expected(case, loss), {}
            for layout in [layout for other, layout in wanted if other == name]:
                stage, micro = LAYOUTS[layout]["engine__zero_stage"], 2 if name in ATTACHED else 1
                loop = (
                    attached(case, stage)
                    if name in ATTACHED
                    else own(case, stage, teachers if name in TAUGHT else None)
                )
                said[name][layout] = compared(case, loop, records, micro)
                discard(Trained(case.config(), loop.engine, loop.pruner))
        dist.barrier()
    return said


if __name__ == "__main__":
    main(checks)
