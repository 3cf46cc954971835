"""Checks of the core that need ranks, each on several layouts, all in one start."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pat.checkpoint import store
from pat.pruning.pruner import Pruner
from pat.training import learning_rate
from pat.zero import engine as ds
from tests.distributed import oracle_checks, parity_checks
from tests.distributed.harness import (
    STEPS,
    Trained,
    batch,
    build,
    build_model,
    digest,
    discard,
    from_rank_0,
    main,
    make_config,
    undisturbed_and_interrupted,
)
from tests.distributed.layouts import layouts
from tests.distributed.parity_checks import LAYOUTS

EVERY = LAYOUTS | layouts(
    "zero0", "zero0 fp32", "zero1 fp32", "zero2 fp32", "zero3 fp32", "zero2 accumulation", "zero3 accumulation"
)
QUICK = ["zero0", "zero1", "zero3 in sub-groups"]  # replicated, one shard a rank, several of pieces of parameters
# Each stage, low precision and fp32 where they are different code, and once each what changes when gradients are there.
SLOW = ["zero2", "zero3", "zero0 fp32", "zero2 fp32", "zero2 offload", "zero3 offload", "zero2 accumulation"]
SLOW += ["zero3 every key"]
PLAIN = {"quick": QUICK[-1:], "slow": [name for name in EVERY if name not in QUICK[-1:]]}
PHASES = (1, 5, 10)  # steps in the dense, soft and hard phase
WHOLE = ["zero0", "zero3", "zero3 in sub-groups"]  # in all phases; the others in one
INTERRUPTED = {  # (pruner, layout, after which steps)
    "quick": [("movement", "zero1", (1, 10)), ("n_of_m", "zero3 in sub-groups", (5,))],
    "slow": [("movement", name, PHASES if name in WHOLE else (5,)) for name in QUICK + SLOW]
    + [
        ("n_of_m", "zero3", PHASES), ("n_of_m", "zero3 in sub-groups", PHASES), ("magnitude", "zero2", (5,)),
        ("block", "zero2", (5,)), ("soft_movement", "zero3", (5,)),
    ],
}  # fmt: skip


def skipped(layouts: list[str]) -> dict[str, Any]:
    """{layout: {step: [skipped, what changed]}}: an infinite loss in the dense, soft and final selection step; and the
    steps that Adam has counted."""
    said: dict[str, Any] = {}
    for layout in layouts:
        trained = build(make_config("movement", **EVERY[layout]))
        at = 0
        for poison in (1, 4, 8, 9):
            trained.run(at, poison)
            before = digest(trained)
            trained.run(poison, poison + 1, poison=poison)
            after = digest(trained)
            changed = [key for key in before if before[key] != after[key]]
            said.setdefault(layout, {})[poison] = [trained.stats.skipped, changed]
            at = poison + 1
        trained.run(at, STEPS)
        trained.pruner.check_finished()
        said[layout]["sparsity"] = trained.pruner.totals.sparsity
        zero = trained.pruner.layout
        said[layout]["adam"] = sorted({int(zero.base.state[shard.flat]["step"]) for shard in zero.shards})
        discard(trained)
    return said


def interrupted(cases: Sequence[tuple[str, str, tuple[int, ...]]]) -> dict[str, Any]:
    """{pruner on layout: [undisturbed, interrupted after these steps]} digests at the end."""
    said: dict[str, Any] = {}
    for kind, layout, stops in cases:
        config = partial(make_config, kind, **EVERY[layout])
        said[f"{kind} on {layout}"] = undisturbed_and_interrupted(lambda config=config: build(config()), stops)
    return said


def moved(source: str, target: str) -> list[Any]:
    """Digests in the soft phase on one layout, and of the same on another one that has loaded it."""
    trained = build(make_config("movement", **EVERY[source]))
    trained.run(0, 5)
    said = [digest(trained)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(from_rank_0(folder))
        store.save(trained.engine, trained.pruner, root, 5, {}, {})
        discard(trained)
        trained = build(make_config("movement", **EVERY[target]))
        reader = store.find(root, trained.pruner.layout.world, print)
        assert reader is not None
        store.load(trained.engine, trained.pruner, reader)
        said.append(digest(trained))
        discard(trained)
        dist.barrier()
    return said


def _clip(model: torch.nn.Module, max_norm: float) -> None:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.stack([g.double().square().sum() for g in gradients]).sum().sqrt().float()
    for gradient in gradients:
        gradient.mul_(torch.clamp(max_norm / (norm + 1e-6), max=1.0))


def plain(layouts: list[str]) -> dict[str, Any]:
    """{layout: [hash with the pruner off, hash of DeepSpeed alone, whether an infinite loss is skipped, hash after it]}
    after some steps from the same weights. At ZeRO 0 in fp32 DeepSpeed skips nothing, so pat clips: here by hand."""
    import deepspeed

    said: dict[str, Any] = {}
    for layout in layouts:
        overrides = EVERY[layout]
        ours = build(make_config(None, **overrides))
        ours.run(0, 6)
        mine = ours.result()["weights"]
        ours.run(6, 7, poison=6)
        after = [ours.stats.skipped, ours.result()["weights"]]
        discard(ours)
        config = make_config(None, **overrides)
        model = build_model(config)
        groups = ds.param_groups(model, config.optim, {})
        optimizer = torch.optim.AdamW(groups, foreach=True, eps=config.optim.eps, betas=(0.9, 0.999))
        alone, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=ds.deepspeed_config(config))
        if config.engine.zero_stage == 0:
            ds.forget_step_of_construction(alone)
        for t in range(6):
            ds.set_lr(alone, learning_rate.lr_factor(t, STEPS, config.optim))
            for micro in range(alone.gradient_accumulation_steps()):
                tokens = batch(t, micro, config)
                alone.backward(alone(input_ids=tokens, labels=tokens).loss)
                if layout == "zero0 fp32":
                    _clip(model, config.engine.gradient_clipping)
                alone.step()
        hasher = Pruner(config)
        hasher.attach(model)
        hasher.bind(alone)  # no pruners: installs nothing
        theirs = Trained(config, alone, hasher)
        said[layout] = [mine, theirs.result()["weights"], *after]
        discard(theirs)
    return said


def checks(which: list[str]) -> dict[str, Any]:
    """All of them on the layouts of the quick or the slow set; for the quick one also those of the scripts that the
    slow set starts by themselves."""
    (name,) = which
    layouts = {"quick": QUICK, "slow": SLOW}[name]
    said = {"skipped": skipped(layouts), "interrupted": interrupted(INTERRUPTED[name]), "plain": plain(PLAIN[name])}
    if name == "slow":
        return said
    return said | {
        "moved": moved("zero1", "zero3 in sub-groups"),
        "parity": parity_checks.on_layouts(["movement"], parity_checks.QUICK),
        "oracle": oracle_checks.checks(["quick"]),
    }


if __name__ == "__main__":
    main(checks)
