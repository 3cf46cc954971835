"""Gates of structures in one process against a naive implementation, on models where the right units are known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import deepspeed
import pytest
import torch
from torch import Tensor

from pat import engine as ds
from pat import tasks
from pat.config import DistillConfig
from pat.distill import Distiller
from pat.integrations import Pruning, attach
from pat.pruning import registry
from pat.pruning.gates import Ranked
from pat.pruning.schedules import Ramp
from tests import formulas, gate_oracle, one_rank, planted
from tests.gate_lagrangian import LEARNED
from tests.planted import Case

STRUCTURES = ("ffn", "kv_groups", "heads", "layers", "attention_layers", "mlp_layers")
METHODS = ("movement", "taylor", "fisher", "magnitude", "activation", "similarity")
OPTIONS: dict[str, dict[str, Any]] = {"movement": {"fade": 10_000}, "taylor": {"decay": 0.8, "fade": 4}}
CASES = [
    *(
        Case(method, (structure,), options=OPTIONS.get(method, {}))
        for method in METHODS
        for structure in STRUCTURES
        if method != "similarity" or structure == "layers"
    ),
    *(Case("taylor", ("ffn", "kv_groups"), budget) for budget in ("shape", "parameters", "flops", "memory")),
    *(Case("magnitude", ("ffn", "kv_groups"), budget) for budget in ("parameters", "flops", "memory")),
    *(Case("fisher", (structure,), "parameters") for structure in ("ffn", "layers", "mlp_layers")),
]


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    with one_rank.alone():
        yield


def train(case: Case, loss_fn: Any = planted.loss, attached: bool = False) -> list[dict[str, Any]]:
    """The same run by pat, or by a foreign loop that it is attached to: the state after each step."""
    model, pruning = planted.student(case), None
    if attached:
        pruning = attach_to(model, case)
        engine, pruner = pruning.engine, pruning.pruner
        assert pruner is not None
    else:
        engine, pruner = one_rank.build(case.config(), model, planted.MICRO)
    (gate,) = pruner.gates
    found = []
    for t, micro_batches in enumerate(planted.micro_batches(case.shape, case.structures)):
        z, losses = gate.state.z.clone(), []
        for number, batch in enumerate(micro_batches):
            loss = loss_fn(engine, batch, t)
            engine.backward(loss)
            losses.append(loss.item())
            if number + 1 < planted.MICRO:
                engine.step()
        keep, score = gate.state.keep.clone(), gate.state.score
        if case.method in LEARNED and not gate.hardened and gate.multiplied is not None:
            z = gate.multiplied.clone()  # a sample
        if pruning is None:
            stats = pruner.step(t)
        else:
            engine.step()
            stats = pruning.stats
            assert stats is not None and engine.global_steps == t + 1
        score = gate.state.score if case.method != "magnitude" else score
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


def attach_to(model: Any, case: Case) -> Pruning:
    """The pruner on an engine that another trainer makes, which clips by itself if its config says so."""
    config = case.config()
    pruner = config.pruners["gates"]
    settings = {key: getattr(pruner, key) for key in ("structures", "gate", "budget", "schedule")}
    pruning = attach(model, {"pruners": {"gates": settings}, "kernels": "eager"}, num_steps=planted.STEPS)
    groups = [group | {"lr": case.lr} for group in ds.param_groups(model, config.optim, {})]
    optimizer = ds.build_optimizer(groups, config.optim)
    given = {"gradient_clipping": planted.MAX_NORM, "zero_optimization": {"stage": 0}}
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=given)
    assert pruning.engine is engine
    return pruning


def initialize(model: Any = None, optimizer: Any = None, config: Any = None, config_params: Any = None) -> Any:
    """What deepspeed.initialize does, without DeepSpeed."""
    return one_rank.PlainEngine(model, optimizer, planted.MICRO, config["gradient_clipping"]), optimizer, None, None


def assert_same(case: Case, records: list[gate_oracle.Record], found: list[dict[str, Any]]) -> None:
    """Flags equal, all else to rounding, at every step; except the weights at the hard step, which pat folds early."""
    for record, ours in zip(records, found, strict=True):
        where = f"{case}, step {record.step}"
        assert torch.equal(ours["keep"], planted.joined(case, record.keep)), where
        torch.testing.assert_close(ours["z"], planted.joined(case, record.z), rtol=0, atol=1e-6, msg=where)
        scores = planted.joined(case, record.scores)
        torch.testing.assert_close(ours["scores"], scores, rtol=1e-4, atol=1e-6 * float(scores.abs().max()), msg=where)
        assert ours["loss"] == pytest.approx(record.loss, abs=1e-5), where
        assert ours["norm"] == pytest.approx(record.norm, rel=1e-4), where
        if record.step + 1 == case.oracle().hard:
            continue  # pat has made the next step ready: its weights are folded
        for name, weight in record.weights.items():
            torch.testing.assert_close(ours["weights"][name], weight, rtol=0, atol=2e-5, msg=f"{where}, {name}")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_planted_units_stay_and_all_is_as_the_naive_implementation_says(case: Case) -> None:
    records, found = planted.expected(case), train(case)
    right = planted.joined(case, planted.right(case))
    assert torch.equal(planted.joined(case, records[-1].keep), right), "the oracle keeps others than were planted"
    assert torch.equal(found[-1]["keep"], right)
    assert_same(case, records, found)


@pytest.mark.parametrize("method", ["taylor", "activation"])
def test_attached_to_another_trainer_it_is_the_same(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: a first step without gates, a step that is not the pruner's, gradients that are clipped twice."""
    monkeypatch.setattr(deepspeed, "initialize", initialize)
    case = Case(method, ("ffn", "kv_groups"))
    found = train(case, attached=True)
    assert_same(case, planted.expected(case), found)
    assert torch.equal(found[-1]["keep"], planted.joined(case, planted.right(case)))


def test_with_a_teacher_it_is_the_same() -> None:
    """Gates under the combined loss: task, answers and hidden states, while the weights of the teacher's part rise."""
    case = Case("taylor", ("ffn",))
    teacher = planted.model(case.shape, case.structures, weak=0.0, strong=2.0).eval()
    config = DistillConfig(teacher="x", weight=0.6, temperature=2.0, hidden_weight=0.05, start=1, end=4)
    layer_map = [0, 1, 3, 2]
    distiller = Distiller(teacher, tasks.build({"name": "causal_lm"}), config, Ramp(1, 4), layer_map)

    def ours(engine: Any, batch: dict[str, Tensor], t: int) -> Tensor:
        return distiller.loss(engine, {"input_ids": batch["input_ids"], "labels": batch["input_ids"]}, t)

    def naive(forward: Any, batch: dict[str, Tensor], t: int) -> Tensor:
        due = min(1.0, max(0.0, (t - 1) / 3))
        with torch.no_grad():
            taught = teacher(input_ids=batch["input_ids"], output_hidden_states=True)
        answers = forward(input_ids=batch["input_ids"], output_hidden_states=True)
        return formulas.distillation_loss(answers, taught, batch["input_ids"], 0.6 * due, 2.0, 0.05 * due, layer_map)

    assert_same(case, planted.expected(case, naive), train(case, ours))


def test_every_ranked_method_has_its_oracle() -> None:
    ranked = {name for name in registry.names("gate") if isinstance(registry.build("gate", name), Ranked)}
    assert ranked == set(METHODS)
    assert set(registry.names("structure")) == set(STRUCTURES)
