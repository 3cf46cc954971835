"""LoRA adapters under gates on ranks: every ZeRO stage, interruptions, what a checkpoint holds; all in one start."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pat.checkpoint import store
from pat.checkpoint.reader import CheckpointReader
from pat.common.parameters import logical_numel
from tests.distributed.harness import (
    STEPS,
    Trained,
    build,
    digest,
    discard,
    from_rank_0,
    main,
    make_config,
    undisturbed_and_interrupted,
)
from tests.distributed.layouts import layouts

LAYOUTS = layouts("zero1", "zero2", "zero3", "zero3 nothing persistent", "zero0", "zero0 fp32")
STAGES = ("zero1", "zero2", "zero3", "zero3 nothing persistent", "zero0")
QUICK = ("zero2", "zero3")
LARGE = {"vocab_size": 8192, "hidden_size": 64}  # 1 MB of frozen embeddings


def adapted(kind: str, layout: str, **overrides: Any) -> Trained:
    """The tiny Llama with adapters and gates."""
    return build(make_config(kind, peft__r=4, **LAYOUTS[layout], **overrides))


def weights(trained: Trained, frozen: bool) -> dict[str, list[float]]:
    """Sums of the frozen or the trained parameters. Collective."""
    layout = trained.pruner.layout
    found = {}
    for name, param in sorted(layout.parameters.items()):
        if param.requires_grad != frozen:
            whole = layout.assemble(name, layout.pieces(name), torch.float32)
            found[name] = [float(whole.double().sum()), float(whole.double().square().sum())]
    return found


def parity(kinds: list[str], stages: tuple[str, ...] = STAGES) -> dict[str, Any]:
    """{gate: {layout: hashes, counts, what moved, how many hooks multiply at the end}}."""
    said: dict[str, Any] = {}
    for kind in kinds:
        for layout in stages:
            trained = adapted(kind, layout)
            base, adapters = weights(trained, frozen=True), weights(trained, frozen=False)
            trained.run(0, STEPS)
            trained.pruner.check()
            trained.pruner.check_finished()
            after = weights(trained, frozen=False)
            structure_pruner = trained.pruner.structure_pruners[0]
            said.setdefault(kind, {})[layout] = trained.result() | {
                "counts": structure_pruner.counts(),
                "target": trained.pruner.totals.target,
                "base_moved": weights(trained, frozen=True) != base,
                "adapters_moved": sum(after[name] != adapters[name] for name in after) / len(after),
                "closed": [int((hook.z == 0).sum()) for hook in structure_pruner.forward.hooks if hook.z is not None],
                "loss": trained.held_out_loss(),
            }
            discard(trained)
    return said


def interrupted(cases: list[str]) -> dict[str, Any]:
    """{"GATE/LAYOUT": [undisturbed, interrupted in the dense, soft and hard phase]} digests at the end."""
    return {case: undisturbed_and_interrupted(partial(adapted, *case.split("/")), (1, 5, 10)) for case in cases}


def moved_to_another_stage(_: list[str]) -> dict[str, Any]:
    """{digest and held-out loss of a hard checkpoint at ZeRO 2, the same after it is loaded at ZeRO 3}."""
    trained = adapted("l0", "zero2")
    trained.run(0, 9)
    said: dict[str, Any] = {"saved": [digest(trained), trained.held_out_loss()]}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(from_rank_0(folder))
        store.save(trained.engine, trained.pruner, root, 9, {}, {})
        discard(trained)
        trained = adapted("l0", "zero3")
        reader = store.find(root, trained.pruner.layout.world, print)
        assert reader is not None
        store.load(trained.engine, trained.pruner, reader)
        said["loaded"] = [digest(trained), trained.held_out_loss()]
        discard(trained)
        dist.barrier()
    return said


def bytes_of_a_checkpoint(_: list[str]) -> dict[str, Any]:
    """{layout: [bytes, frozen and trained parameters, parameters that the reader finds whole]}."""
    said: dict[str, Any] = {}
    for layout in ("zero2", "zero3", "zero0"):
        trained = adapted("l0", layout, model__config=LARGE)
        trained.run(0, 1)
        named = trained.pruner.layout.parameters.values()
        frozen, own = (sum(logical_numel(p) for p in named if p.requires_grad == grad) for grad in (False, True))
        with tempfile.TemporaryDirectory() as folder:
            path = store.save(trained.engine, trained.pruner, Path(from_rank_0(folder)), 1, {}, {})
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            reader = CheckpointReader(path)
            whole = sum(reader.weight(name).numel() for name in reader.parameters)
            dist.barrier()
        said[layout] = [size, frozen, own, whole]
        discard(trained)
    return said


def checks(arguments: list[str]) -> dict[str, Any]:
    """The named check, of what follows it."""
    name, *what = arguments
    named = {
        "parity": parity,
        "quick": partial(parity, stages=QUICK),
        "interrupted": interrupted,
        "moved": moved_to_another_stage,
    }
    return (named | {"bytes": bytes_of_a_checkpoint})[name](what)


if __name__ == "__main__":
    main(checks)
