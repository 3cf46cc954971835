"""Every schedule on every kind of gate and budget: what is due, from the first step to the last."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pat.pruning import registry
from pat.pruning.gates import CalibratedGate
from pat.pruning.pruner import Pruner
from pat.pruning.weights.matrices import Matrices
from pat.pruning.weights.pruner import WeightPruner
from pat.schema import Config, PrunerConfig
from tests import models as small
from tests import one_rank

STEPS, START, END = 20, 4, 12
LINES = {name: {"name": name, "start": START, "end": END} for name in registry.names("schedule")}
LINES["stepwise"] |= {"num_levels": 4}
BUDGETS: list[dict[str, Any]] = [
    {"name": "parameters", "sparsity": 0.3},
    {"name": "flops", "sparsity": 0.3, "seq_len": 16},
    {"name": "memory", "sparsity": 0.2, "batch": 2, "context": 16},
    {"name": "shape", "keep": {"ffn": 64}},
]
MODEL: list[Any] = []


def structure_pruner(gate: str, budget: dict[str, Any], schedule: dict[str, Any], kind: str = "ffn") -> Any:
    if not MODEL:
        MODEL.append(small.model("llama"))
    narrow = PrunerConfig(structures=[kind], gate=gate, budget=budget, schedule=schedule)
    pruner = Pruner(Config().changed(train__num_steps=STEPS, pruners__narrow=narrow))
    pruner.attach(MODEL[0])
    return pruner.structure_pruners[0]


@pytest.mark.parametrize("budget", BUDGETS, ids=lambda budget: budget["name"])
@pytest.mark.parametrize("schedule", LINES)
def test_every_schedule_runs_from_dense_to_the_budget(schedule: str, budget: dict[str, Any]) -> None:
    """Would catch a ramp that cannot be evaluated for gates, as the logarithm of what a whole budget leaves."""
    for gate in ("l0", "taylor"):
        pruner = structure_pruner(gate, budget, LINES[schedule])
        due = [pruner.due(t) for t in range(STEPS)]
        assert due == sorted(due) and set(due[:START]) == {0.0} and set(due[END:]) == {1.0}
        assert pruner.target(STEPS - 1) == pruner.goal.sparsity


@pytest.mark.parametrize("budget", BUDGETS, ids=lambda budget: budget["name"])
@pytest.mark.parametrize("schedule", [name for name in LINES if name != "one_shot"])
def test_initial_is_a_sparsity_for_gates_as_for_masks(schedule: str, budget: dict[str, Any]) -> None:
    """At `start` so much is to be removed as `initial` says, of what the budget counts; and never half of the half."""
    line = LINES[schedule] | {"initial": 0.1}
    pruner = structure_pruner("taylor", budget, line)
    final = budget.get("sparsity", pruner.goal.sparsity)
    assert pruner.due(START) * final == pytest.approx(0.1)
    assert pruner.target(START) == pytest.approx(0.1 / final * pruner.goal.sparsity)
    weight_pruner = WeightPruner(
        "weights",
        PrunerConfig(
            params=["w"], granularity="weight", criterion="magnitude", schedule=line,
            budget={"name": "sparsity", "sparsity": final},
        ),
        Matrices({"w": (8, 8)}), STEPS, 0, "eager",
    )  # fmt: skip
    for t in range(STEPS):
        assert pruner.due(t) * final == pytest.approx(weight_pruner.target(t), abs=1e-9)


def test_what_scores_decide_is_a_goal_only_once_they_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: a target that is announced as certain and missed, and gates that count as gone while they close."""
    flops = {"name": "flops", "sparsity": 0.2, "seq_len": 16, "multiple_of": 1}
    once = {"name": "one_shot", "start": 2, "hard_from": 6}
    assert structure_pruner("taylor", flops, once).goal.is_certain
    narrow = PrunerConfig(structures=["ffn", "kv_groups"], gate="taylor", budget=flops, schedule=once)
    made, model = Config().changed(train__num_steps=STEPS, optim__lr=1e-3, pruners__narrow=narrow), small.model("llama")
    with one_rank.alone():
        _, pruner = one_rank.build(made, model)
        (own,), totals, expected = pruner.structure_pruners, pruner.totals, pruner.totals.target
        state, shared = own.tensors(), own.shared()
        assert not own.goal.is_certain and "if all scores were equal; they decide what gives 20 % less FLOPs" in (
            own.goal.in_words()
        )
        order = torch.arange(float(sum(own.units.sizes)))  # KV groups give as much as they can
        scores = {
            site.name: part + 1e3 * (site.structure == "ffn")
            for site, part in zip(own.sites, own.units.split(order).values(), strict=True)
        }
        monkeypatch.setattr(own.training, "scores", lambda state: own.units.join(scores))
        with torch.no_grad():
            own.begin(2)
            assert totals.sparsity > 0.0 == totals.exported and totals.target == expected
            own.begin(6)
        assert own.hardened and totals.target == totals.sparsity == totals.exported != expected
        again = Pruner(made)
        again.attach(small.model("llama"))
        (other,) = again.structure_pruners
        other.restore(own.tensors(), own.shared())
        assert again.totals.target == totals.target and other.goal.is_certain
        own.restore(state, shared)
        assert totals.target == expected, "a run that goes back to before its cut"


@pytest.mark.parametrize("gate", registry.names("gate"))
def test_every_training_takes_a_soft_step(gate: str) -> None:
    """Would catch: one that is derived from another and lacks what that one works with."""
    method = registry.build("gate", gate)
    kind, cuts = "layers" if method.pooled_only else "ffn", isinstance(method, CalibratedGate)
    budget = {"name": "shape", "keep": {kind: 2}, "multiple_of": 1, "hf_compatible": False}
    pruner = structure_pruner(gate, budget, {"name": "one_shot", "start": START} if cuts else LINES["linear"], kind)
    state, training, now = pruner.state, pruner.training, pruner._moment(START)
    before = state.z.clone()
    training.advance(state, now, None)
    assert all(z.shape == before.shape for z in training.gates(state, now))
    assert training.scores(state).shape == training.final(state).shape == before.shape
    if cuts:
        assert torch.equal(state.z, before) and not training.learns("dense") and training.kept(state, now) is None


def test_an_initial_above_the_budget_is_refused_for_gates_too() -> None:
    with pytest.raises(ValueError, match="schedule.initial is 0.4, above the budget's 0.3"):
        structure_pruner("taylor", BUDGETS[0], LINES["linear"] | {"initial": 0.4})


def test_half_of_the_way_is_a_half() -> None:
    """The quotient of two sparsities is not left a bit below the share that it stands for."""
    for sparsity in torch.arange(0.01, 0.33, 0.01).tolist():
        pruner = structure_pruner("taylor", {"name": "parameters", "sparsity": round(sparsity, 2)}, LINES["linear"])
        assert [pruner.due(t) for t in range(START, END + 1)] == [k / 8 for k in range(9)]
