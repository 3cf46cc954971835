"""A gate's gradient that is not finite is an overflow of the step: for the weights, for the gates, on every layout."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pat.common.comm import LOCAL
from pat.pruning.pruner import Pruner
from pat.pruning.seam import Seam
from pat.pruning.structures.hooks import GatedForward
from pat.pruning.structures.pruner import StructurePruner
from pat.pruning.structures.sites import Site
from pat.schema import Config, PrunerConfig
from pat.zero.layouts.replicated import Zero0LowPrecision
from tests import models as small
from tests import one_rank, planted
from tests.planted import SMOOTHED, Case
from tests.thread_ranks import run_ranks

SETTINGS: dict[str, Any] = {
    "structures": ["ffn"],
    "gate": "movement",
    "budget": {"name": "shape", "keep": {"ffn": 64}},
    "schedule": {"name": "cubic", "start": 4, "end": 8},
}


@pytest.fixture
def process_group() -> Iterator[None]:
    with one_rank.alone():
        yield


def test_in_fp16_gates_overflow_before_any_weight() -> None:
    """Why this is needed: a gate's gradient is a sum over all weights behind it, so it leaves fp16's range first."""
    linear = torch.nn.Linear(64, 64, bias=False)
    torch.nn.init.constant_(linear.weight, 0.5)
    model = torch.nn.Sequential(linear).half().train()
    forward = GatedForward([Site("ffn:0", "ffn", 0, 0, 1, (), "0", 64, ())], model, "gradient")
    forward.set(torch.ones(1), None, torch.device("cpu"))
    x = torch.ones(1, 8, 64, dtype=torch.float16, requires_grad=True)
    (model(x).float().sum() * 8.0).backward()
    assert linear.weight.grad is not None and bool(linear.weight.grad.isfinite().all())
    assert not bool(forward.evidence(LOCAL, 8.0).isfinite().all())  # type: ignore[union-attr]


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("where", [None, 0, 1])
def test_what_one_rank_finds_every_rank_skips(value: float, where: int | None) -> None:
    """Of two ranks one has it, or none: all agree, and a skipped step leaves scores and history as they were."""

    def work(comm: Any) -> list[Any]:
        structure_pruner = StructurePruner(
            "narrow", PrunerConfig(**SETTINGS), small.model("llama"), num_steps=12, seed=0
        )
        base: Any = SimpleNamespace(param_groups=[{"betas": (0.9, 0.999)}])
        layout: Any = SimpleNamespace(world=comm, comm=comm, device=torch.device("cpu"), base=base)
        structure_pruner.bind(layout)
        structure_pruner.begin(0)
        for hook in structure_pruner.forward.hooks:
            assert hook.z is not None
            hook.z.grad = torch.full_like(hook.z, 0.5)
        if comm.rank == where:
            structure_pruner.forward.hooks[1].z.grad[3] = value  # type: ignore[union-attr, index]
        finite = structure_pruner.gather(2.0)
        structure_pruner.learn(0, skipped=not finite)
        return [finite, structure_pruner.history.steps, structure_pruner.state.score.unique().tolist()]

    found, _ = run_ranks(2, work)
    fine = where is None
    assert found[0] == found[1]
    assert found[0][:2] == [fine, int(fine)] and (len(found[0][2]) == 1 and found[0][2][0] < 0 if fine else True)
    assert fine or found[0][2] == [0.0]


def test_the_norm_is_infinite_and_zero_0_sees_an_overflow() -> None:
    """What DeepSpeed asks: the norm at ZeRO 1 to 3, its own search for an overflow at ZeRO 0."""
    pruner = Pruner(Config())
    comm: Any = SimpleNamespace(sum=lambda total: total)
    fields: Any = {"shards": [], "device": torch.device("cpu"), "comm": comm}
    pruner.layout = SimpleNamespace(**fields)  # type: ignore[assignment]
    pruner.seam = Seam(pruner.layout, [], "eager")
    for finite, norm in ((True, 0.0), (False, float("inf"))):
        pruner._finite = finite
        assert float(pruner.masked_norm()) == norm
        for own in (False, True):
            checker = SimpleNamespace(has_overflow=lambda params, own=own: own)
            zero = SimpleNamespace(overflow_checker=checker, unscale_and_clip_grads=None)
            layout: Any = SimpleNamespace(zero=zero)
            Zero0LowPrecision.replace_norm(layout, pruner.masked_norm, lambda finite=finite: finite)
            assert checker.has_overflow([]) is (own or not finite)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("where", ["a gate", "a weight"])
def test_a_skipped_step_changes_nothing(where: str, value: float) -> None:
    """No weight, no mask, no score, no history; the next step is taken."""
    case = Case("movement", ("ffn",))
    weights = PrunerConfig(
        params=["*.self_attn.*.weight"], granularity="weight", criterion="movement",
        budget={"name": "sparsity", "sparsity": 0.5}, schedule={"name": "linear", "start": 2, "end": 8},
    )  # fmt: skip
    config = case.config().changed(pruners__weights=weights)
    engine, pruner = one_rank.build(config, planted.student(case), planted.MICRO)
    for t, batches in enumerate(planted.micro_batches(case)[:6]):
        for number, batch in enumerate(batches):
            engine.backward(planted.loss(engine, batch, t))
            if number + 1 < planted.MICRO:
                engine.step()
        if t != 4:
            assert not pruner.step(t).skipped
            continue
        if where == "a gate":
            pruner.structure_pruners[0].forward.hooks[1].z.grad[3] = value  # type: ignore[union-attr, index]
        else:
            model: Any = engine.module.model
            model.layers[1].mlp.up_proj.weight.grad[3, 5] = value
        before = {key: tensor.clone() for key, tensor in pruner.state()[0].items()}, pruner.state()[1]
        weights = [p.detach().clone() for p in engine.module.parameters()]
        stats = pruner.step(t, begin_next=False)
        assert stats.skipped and not torch.isfinite(stats.norm)
        after = pruner.state()
        assert after[1] == before[1] and all(torch.equal(after[0][key], before[0][key]) for key in before[0])
        assert all(torch.equal(p, w) for p, w in zip(engine.module.parameters(), weights, strict=True))
        pruner.begin(t + 1)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("method", ["movement", "taylor", "l0"])
def test_the_scale_of_the_loss_is_taken_out_of_the_evidence(method: str) -> None:
    """Of fp16: a loss times 8 leaves the same scores, to the bit."""
    case = Case(method, ("ffn",), options=SMOOTHED if method == "l0" else {})
    found = []
    for scale in (1.0, 8.0):
        engine: Any
        engine, pruner = one_rank.build(case.config(), planted.student(case))
        engine.optimizer.loss_scale, engine.fp16_enabled = scale, lambda: True
        engine.backward(scale * planted.loss(engine, planted.micro_batches(case)[0][0], 0))
        pruner.step(0)
        found.append(pruner.structure_pruners[0].tensors())
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
