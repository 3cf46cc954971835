"""Gates of structures in one process against a naive implementation, on models where the right units are known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import deepspeed
import pytest
import torch
from torch import Tensor

from pat.pruning import registry
from pat.pruning.gates import Learned, Ranked
from pat.pruning.schedules import Ramp
from pat.tasks import base
from pat.training.distill import Distiller
from tests import gate_oracle, one_rank, planted, planted_loops
from tests.gate_lagrangian import LEARNED
from tests.planted import SMOOTHED, Case
from tests.sets import slow, thinned

STRUCTURES = registry.names("structure")
METHODS = [name for name in registry.names("gate") if issubclass(registry.classes("gate")[name], Ranked)]
OPTIONS: dict[str, dict[str, Any]] = {"movement": {"fade": 10_000}, "taylor": {"decay": 0.8, "fade": 4}}
CASES = [
    *(
        Case(method, (structure,), options=OPTIONS.get(method, {}))
        for method in METHODS
        for structure in STRUCTURES
        if "similarity" not in method or structure == "layers"
    ),
    *(Case("taylor", ("ffn", "kv_groups"), budget) for budget in ("shape", "parameters", "flops", "memory")),
    *(Case("magnitude", ("ffn", "kv_groups"), budget) for budget in ("parameters", "flops", "memory")),
    *(Case("fisher", (structure,), "parameters") for structure in ("ffn", "layers", "mlp_layers")),
    *(Case("l0", (structure,), options=SMOOTHED) for structure in ("ffn", "layers")),
    *(Case("smooth", (structure,), options=SMOOTHED) for structure in ("kv_groups", "heads")),
    Case("l0", ("ffn", "kv_groups"), options=SMOOTHED),
    Case("l0", ("attention_layers", "mlp_layers"), options=SMOOTHED),
    Case("l0", ("ffn", "kv_groups"), "parameters", SMOOTHED, per_layer=True),
    Case("l0", ("ffn", "kv_groups"), "parameters", SMOOTHED),
    Case("smooth", ("ffn", "kv_groups"), "memory", SMOOTHED),
    Case("l0", ("mlp_layers",), "parameters", SMOOTHED),
]


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    with one_rank.alone():
        yield


def train(case: Case, loss_fn: Any = planted.loss, attached: bool = False) -> list[dict[str, Any]]:
    """The same run by pat, or by a foreign loop that it is attached to: the state after each step."""
    model, pruning = planted.student(case), None
    if attached:
        pruning = planted_loops.attach_to(case, model, zero_optimization={"stage": 0})
        engine, pruner = pruning.engine, pruning.pruner
        assert pruner is not None
    else:
        engine, pruner = one_rank.build(case.config(), model, planted.MICRO)
    (structure_pruner,) = pruner.structure_pruners
    found = []
    for t, micro_batches in enumerate(planted.micro_batches(case)):
        z, losses = structure_pruner.state.z.clone(), []
        for number, batch in enumerate(micro_batches):
            loss = loss_fn(engine, batch, t)
            engine.backward(loss)
            losses.append(loss.item())
            if number + 1 < planted.MICRO:
                engine.step()
        keep, score = structure_pruner.state.keep.clone(), structure_pruner.state.score
        if case.method in LEARNED and not structure_pruner.hardened and structure_pruner.multiplied is not None:
            z = structure_pruner.multiplied.clone()  # a sample
        if pruning is None:
            stats = pruner.step(t)
        else:
            engine.step()
            stats = pruning.stats
            assert stats is not None and engine.global_steps == t + 1
        score = structure_pruner.state.score if case.method != "magnitude" else score
        weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        found.append(
            {
                "loss": sum(losses) / len(losses), "norm": float(stats.norm), "z": z, "keep": keep,
                "scores": score.clone(), "weights": weights,
            }
        )  # fmt: skip
    pruner.check()
    pruner.check_finished()
    return found


def initialize(model: Any = None, optimizer: Any = None, config: Any = None, config_params: Any = None) -> Any:
    """What deepspeed.initialize does, without DeepSpeed."""
    return one_rank.PlainEngine(model, optimizer, planted.MICRO, config["gradient_clipping"]), optimizer, None, None


def assert_same(case: Case, records: list[gate_oracle.Record], found: list[dict[str, Any]]) -> None:
    """Flags equal, all else to the case's tolerance, at every step; but not what pat makes ready a step early: the
    folded weights of the hard step, and the logits with which learned gates begin."""
    near, line = case.tolerance, case.oracle()
    for record, ours in zip(records, found, strict=True):
        where = f"{case}, step {record.step}"
        assert torch.equal(ours["keep"], planted.joined(case, record.keep)), where
        torch.testing.assert_close(ours["z"], planted.joined(case, record.z), rtol=0, atol=near.gates, msg=where)
        scores = planted.joined(case, record.scores)
        if case.method not in LEARNED or record.step + 1 != line.start:
            atol = near.scores * float(scores.abs().max())
            torch.testing.assert_close(ours["scores"], scores, rtol=1e-4, atol=atol, msg=where)
        assert ours["loss"] == pytest.approx(record.loss, abs=near.loss), where
        assert ours["norm"] == pytest.approx(record.norm, rel=near.norm), where
        if record.step + 1 == line.hard:
            continue
        atol = near.weights if record.step < line.hard else near.folded
        for name, weight in record.weights.items():
            torch.testing.assert_close(ours["weights"][name], weight, rtol=0, atol=atol, msg=f"{where}, {name}")


@pytest.mark.parametrize("case", thinned(CASES, 4), ids=str)
def test_the_planted_units_stay_and_all_is_as_the_naive_implementation_says(case: Case) -> None:
    records, found = planted.expected(case), train(case)
    right = planted.joined(case, planted.right(case))
    assert torch.equal(planted.joined(case, records[-1].keep), right), "the oracle keeps others than were planted"
    assert torch.equal(found[-1]["keep"], right)
    assert_same(case, records, found)


@pytest.mark.parametrize("method", ["taylor", slow("activation"), "l0"])
def test_attached_to_another_trainer_it_is_the_same(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: a first step without gates, a step that is not the pruner's, gradients that are clipped twice."""
    monkeypatch.setattr(deepspeed, "initialize", initialize)
    case = Case(method, ("ffn", "kv_groups"), options=SMOOTHED if method in LEARNED else {})
    found = train(case, attached=True)
    assert_same(case, planted.expected(case), found)
    assert torch.equal(found[-1]["keep"], planted.joined(case, planted.right(case)))


@pytest.mark.parametrize("method", [slow("taylor"), "l0"])
def test_with_a_teacher_it_is_the_same(method: str) -> None:
    """Gates under the combined loss: task, answers and hidden states, while the weights of the teacher's part rise."""
    case = Case(method, ("ffn",), options=SMOOTHED if method in LEARNED else {})
    teacher, config = planted.teacher(case), planted_loops.distillation("x")
    ramp = Ramp(planted_loops.START, planted_loops.END)
    distiller = Distiller(teacher, base.build({"name": "causal_lm"}), config, ramp, planted_loops.LAYER_MAP)

    def ours(engine: Any, batch: dict[str, Tensor], t: int) -> Tensor:
        return distiller.loss(engine, planted_loops.labelled(batch), t)

    assert_same(case, planted.expected(case, planted_loops.taught_by(teacher)), train(case, ours))


def test_every_method_has_its_oracle() -> None:
    for kind, methods in ((Ranked, METHODS), (Learned, LEARNED)):
        found = {name for name in registry.names("gate") if isinstance(registry.build("gate", name), kind)}
        assert found == set(methods)
    assert set(registry.names("structure")) == set(STRUCTURES)
