"""Gates on ranks: the same on every ZeRO stage, and after interruptions and skipped steps; all in one start."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch.distributed as dist

from tests.distributed import gate_oracle_checks, parity_checks
from tests.distributed.harness import (
    GATES,
    STEPS,
    build,
    digest,
    discard,
    main,
    make_config,
    pruner_config,
    undisturbed_and_interrupted,
)
from tests.distributed.layouts import layouts
from tests.distributed.parity_checks import LAYOUTS

ELSEWHERE = layouts("zero0 fp32", "zero0", "zero2 accumulation", "zero3 accumulation")
STAGES = ("zero1", "zero2", "zero3")
PARITY = {name: LAYOUTS[name] for name in ("zero1", "zero2", "zero3", "zero3 in sub-groups", "zero2 offload")}
QUICK = ("zero1", "zero3 in sub-groups", "zero2 offload")  # of PARITY
EVERYWHERE = ("l0", "structured_movement", "obs")  # on all of PARITY: learned, ranked, cut with an update
Cases = list[tuple[str, str]]  # (gate, layout)
PHASES = (1, 5, 10)  # steps in the dense, soft and hard phase
WHOLE = ("structured_movement", "smooth", "obs")  # of a fade, a multiplier, a cut at once; the others in the soft one
Stopped = Sequence[tuple[str, str, tuple[int, ...]]]
INTERRUPTED: dict[str, Stopped] = {  # with the steps after which
    "quick": [("l0", "zero3", (5,)), ("structured_movement", "zero2", (1, 10))],
    "slow": [("l0", name, PHASES if name == "zero3" else (5,)) for name in (*PARITY, *ELSEWHERE)]
    + [(kind, "zero3", PHASES if kind in WHOLE else (5,)) for kind in GATES if kind != "l0"],
}
SKIPPED: dict[str, Cases] = {
    "quick": [("l0", "zero1")],
    "slow": [("l0", "zero2"), ("l0", "zero3"), ("structured_movement", "zero1"), ("structured_movement", "zero3")],
}
OVERFLOWED: dict[str, Cases] = {
    "quick": [("l0", "zero0"), ("structured_movement", "zero3")],
    "slow": [("l0", "zero1"), ("l0", "zero3"), ("l0", "zero2 offload"), ("structured_movement", "zero1")]
    + [("structured_movement", "zero0 fp32")],
}
TOGETHER = {"quick": [("inside", ("zero1", "zero3"))], "slow": [("beside", STAGES), ("inside", STAGES)]}


def names(kind: str) -> Iterable[str]:
    """The layouts of a gate in the slow set."""
    return PARITY if kind in EVERYWHERE else parity_checks.STAGES


def parity(kinds: Sequence[str], among: Iterable[str] | None = None) -> dict[str, Any]:
    """{gate: {layout: hashes and shape}}."""
    said: dict[str, Any] = {}
    for kind in kinds:
        for layout in among or names(kind):
            trained = build(make_config(kind, **PARITY[layout]))
            trained.run(0, STEPS)
            trained.pruner.check()
            trained.pruner.check_finished()
            said.setdefault(kind, {})[layout] = trained.result() | {
                "counts": trained.pruner.structure_pruners[0].counts(),
                "target": trained.pruner.totals.target,
            }
            discard(trained)
    return said


def together(case: str, names: Sequence[str]) -> dict[str, Any]:
    """{layout: hashes}: L0 gates, and 2:4 masks on other matrices, or inside what the gates leave."""
    found: dict[str, Any] = {}
    attention = ["*.q_proj.weight", "*.k_proj.weight", "*.v_proj.weight"]
    inside = [*attention, "*.o_proj.weight", "*.gate_proj.weight", "*.up_proj.weight"]
    kind, params, start = {"beside": ("ffn", attention, 2), "inside": ("l0", inside, 8)}[case]
    for layout in names:
        masks = pruner_config("n_of_m", start=start, end=10).changed(params=params, exclude=[])
        trained = build(make_config(kind, pruners__two_four=masks, **LAYOUTS[layout]))
        trained.run(0, STEPS)
        trained.pruner.check()
        trained.pruner.check_finished()
        found[layout] = trained.result() | {
            "each": {p.name: p.sparsity for p in trained.pruner.pruners},
            "target": trained.pruner.totals.target,
        }
        discard(trained)
    return found


def skipped(cases: Cases) -> dict[str, Any]:
    """{gate on layout: {step: [skipped, what changed]}}: an infinite loss in the dense, soft, last soft and hard step.

    The step after a skipped one draws new gates and may choose again, from the same evidence: that is not looked at.
    """
    said: dict[str, Any] = {}
    for kind, layout in cases:
        config = make_config(kind, **LAYOUTS[layout])
        # Else the soft phase begins, from the same evidence, right after step 1.
        later = replace(config.pruners["weights"].schedule, start=3)
        trained = build(config.changed(pruners__weights__schedule=later))
        at = 0
        for poison in (1, 4, 9):
            trained.run(at, poison)
            before = learnt(trained)
            trained.run(poison, poison + 1, poison=poison)
            after = learnt(trained)
            changed = [key for key in before if before[key] != after[key]]
            said.setdefault(f"{kind} on {layout}", {})[poison] = [trained.stats.skipped, changed]
            at = poison + 1
        trained.run(at, STEPS)
        trained.pruner.check_finished()
        discard(trained)
    return said


def overflowed(cases: Cases) -> dict[str, Any]:
    """{gate on layout: {step: [skipped, what changed, all scores finite]}}: one rank has a gate whose gradient is
    infinite, and every gradient of a weight is finite, as it happens in fp16."""
    said: dict[str, Any] = {}
    for kind, layout in cases:
        trained = build(make_config(kind, **(LAYOUTS | ELSEWHERE)[layout]))
        at, structure_pruner, plain = 0, trained.pruner.structure_pruners[0], trained.pruner.step
        for step, value in ((4, float("inf")), (5, float("nan"))):
            trained.run(at, step)
            before = learnt(trained)

            def with_infinity(
                t: int, value: float = value, structure_pruner: Any = structure_pruner, plain: Any = plain
            ) -> Any:
                if dist.get_rank() == dist.get_world_size() - 1:
                    hook = structure_pruner.forward.hooks[0]  # sums by example, or the gradient of all
                    (hook.z.grad if hook.sums is None else hook.sums)[1] = value
                return plain(t)

            trained.pruner.step = with_infinity  # type: ignore[method-assign]
            trained.run(step, step + 1)
            trained.pruner.step = plain
            after = learnt(trained)
            changed = [key for key in before if before[key] != after[key]]
            finite = bool(structure_pruner.state.score.isfinite().all())
            said.setdefault(f"{kind} on {layout}", {})[step] = [trained.stats.skipped, changed, finite]
            at = step + 1
        trained.run(at, STEPS)
        trained.pruner.check_finished()
        discard(trained)
    return said


def learnt(trained: Any) -> dict[str, Any]:
    """All that evidence moves."""
    found = digest(trained)
    structure_pruner = trained.pruner.structure_pruners[0]
    found["gates"] = {k: v.tolist() for k, v in structure_pruner.tensors().items() if k not in ("z", "keep")}
    return {key: found[key] for key in ("weights", "exp_avg", "exp_avg_sq", "steps", "gates")}


def interrupted(cases: Stopped) -> dict[str, Any]:
    """{gate on layout: [undisturbed, interrupted after these steps]} digests at the end."""
    said: dict[str, Any] = {}
    for kind, layout, stops in cases:
        config = partial(make_config, kind, **(LAYOUTS | ELSEWHERE)[layout])
        said[f"{kind} on {layout}"] = undisturbed_and_interrupted(lambda config=config: build(config()), stops)
    return said


def activation_checkpointing(_: list[str]) -> dict[str, Any]:
    """{gate: [weights and masks without, non-reentrant, reentrant]}, fp32, ZeRO 2."""
    said: dict[str, Any] = {}
    for kind in ("l0", "structured_taylor"):
        for how in (None, False, True):
            trained = build(make_config(kind, engine__zero_stage=2, engine__dtype="fp32"))
            if how is not None:
                module = trained.engine.module
                module.gradient_checkpointing_enable({"use_reentrant": how})
                module.enable_input_require_grads()
            trained.run(0, STEPS)
            said.setdefault(kind, []).append(trained.result())
            discard(trained)
    return said


def curve(kinds: list[str]) -> dict[str, Any]:
    """{gate: [held-out loss, scores]} in fp32 at ZeRO 2, for the same global batch on any number of ranks."""
    said: dict[str, Any] = {}
    for kind in kinds:
        trained = build(make_config(kind, engine__zero_stage=2, engine__dtype="fp32"))
        trained.run(0, STEPS)
        said[kind] = [trained.held_out_loss(), trained.pruner.structure_pruners[0].state.keep.int().tolist()]
        discard(trained)
    return said


def several(which: list[str]) -> dict[str, Any]:
    """Four checks on the cases of the quick or the slow set; for the quick one also two that the slow set starts by
    themselves."""
    (name,) = which
    said = {"parity": parity(["l0"], QUICK), "oracle": gate_oracle_checks.checks(["quick"])} if name == "quick" else {}
    return said | {
        "together": {case: together(case, names) for case, names in TOGETHER[name]},
        "skipped": skipped(SKIPPED[name]),
        "overflowed": overflowed(OVERFLOWED[name]),
        "interrupted": interrupted(INTERRUPTED[name]),
    }


def checks(arguments: list[str]) -> dict[str, Any]:
    """The named check, of the gates that follow it."""
    name, *kinds = arguments
    named = {"parity": parity, "several": several, "curve": curve, "recomputed": activation_checkpointing}
    return named[name](kinds)


if __name__ == "__main__":
    main(checks)
