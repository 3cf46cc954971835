"""What gates do with evidence that is known: which units stay, what is folded; hard concrete against the paper.

These tests are about the sign of things. An optimizer that ascends, a budget that keeps the worst units or a fold that
is left out reach the same sparsity and give the same bits on every rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pat.pruning import registry
from pat.pruning.gates import Learned
from pat.pruning.structures.pruner import StructurePruner
from tests import formulas, one_rank, planted
from tests.gate_lagrangian import Learner, Options
from tests.planted import Case

LEARNED = [name for name in registry.names("gate") if issubclass(registry.classes("gate")[name], Learned)]
STEPS = 60


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    with one_rank.alone():
        yield


def pruner_of(case: Case, **schedule: Any) -> tuple[Any, StructurePruner]:
    line = {"name": "cubic", "start": 5, "end": 45, "hard_from": 50} | schedule
    config = case.config().changed(train__num_steps=STEPS, pruners__gates__schedule=line)
    engine, pruner = one_rank.build(config, planted.student(case))
    return engine, pruner.structure_pruners[0]


@pytest.mark.parametrize("structure", ["ffn", "layers"])
@pytest.mark.parametrize("name", [*LEARNED, "movement"])
def test_units_whose_gates_the_loss_wants_open_stay(name: str, structure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """dL/dz = -1 at the planted units and +1 at the others, and noise: would catch a score or an optimizer of the wrong
    sign, and a choice that keeps the lowest."""
    case = Case(name, (structure,))
    _, structure_pruner = pruner_of(case)
    right = planted.joined(case, planted.planted(case.shape, case.structures))
    generator = torch.Generator().manual_seed(1)

    def evidence(*_: Any) -> Tensor:
        grad = 1e-3 * (1.0 - 2.0 * right.float() + 0.3 * torch.randn(right.shape, generator=generator))
        return grad if name == "movement" else torch.stack([grad, torch.full_like(grad, 1e-3)])

    monkeypatch.setattr(structure_pruner.forward, "evidence", evidence)
    for t in range(STEPS):
        assert structure_pruner.gather(1.0)
        structure_pruner.learn(t, skipped=False)
        structure_pruner.begin(t + 1)
    assert structure_pruner.hardened and torch.equal(structure_pruner.state.keep, right)


def test_final_gates_are_folded_into_what_they_multiply() -> None:
    """Columns of down_proj times z, nothing else; units that are gone are 0 everywhere, with Adam's moments."""
    case = Case("l0", ("ffn",))
    engine, structure_pruner = pruner_of(case, start=1, end=2, hard_from=2)
    (batch, *_), *_ = planted.micro_batches(case)
    engine.backward(planted.loss(engine, batch, 0))
    engine.step()
    before = {name: p.detach().clone() for name, p in engine.module.named_parameters()}
    values = torch.linspace(0.3, 0.9, sum(structure_pruner.units.sizes))
    structure_pruner.training.final = lambda state: values
    structure_pruner.state.score = torch.randn(values.shape, generator=torch.Generator().manual_seed(2))
    structure_pruner.begin(2)
    z = torch.where(structure_pruner.state.keep, values, torch.zeros_like(values)).view(case.shape.layers, -1)
    keep = structure_pruner.state.keep.view(case.shape.layers, -1).float()
    assert 0 < keep.sum() < keep.numel()
    for i in range(case.shape.layers):
        at = f"model.layers.{i}.mlp"
        for name, factor in (("gate", keep[i][:, None]), ("up", keep[i][:, None]), ("down", z[i])):
            p = engine.module.get_parameter(f"{at}.{name}_proj.weight")
            torch.testing.assert_close(p.detach(), before[f"{at}.{name}_proj.weight"] * factor, rtol=1e-6, atol=0)
            dead = (factor == 0).expand_as(p)
            assert dead.any()
            for moment in ("exp_avg", "exp_avg_sq"):
                assert not engine.optimizer.state[p][moment][dead].any()
                assert engine.optimizer.state[p][moment][~dead].any()


@pytest.mark.parametrize("a", [-6.0, -1.0, 0.0, 0.7, 3.0, 6.0])
def test_l0_is_the_hard_concrete_of_the_paper(a: float) -> None:
    """Equations 10 to 13 of Louizos et al. 2018, with constants of the test's own: beta 2/3, from -0.1 to 1.1."""
    method = registry.build("gate", "l0")
    u = torch.tensor([0.001, 0.05, 0.3, 0.5, 0.7, 0.95, 0.999])
    at = torch.full_like(u, a)
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(method.sample(at, u), formulas.hard_concrete(at, u), **close)
    torch.testing.assert_close(method.open(at), formulas.hard_concrete_open(at), **close)
    torch.testing.assert_close(method.mean(at), formulas.hard_concrete_mean(at), **close)


def test_hard_concrete_by_hand() -> None:
    """sigmoid(0) = 1/2 is stretched to itself; P(z > 0) = 0.8318 there; 0.9 / 1.2 is sigmoid(1.0986)."""
    half = torch.tensor([0.5])
    method = registry.build("gate", "l0")
    assert float(method.sample(0.0 * half, half)) == pytest.approx(0.5)
    assert float(method.open(0.0 * half)) == pytest.approx(1 / (1 + (1 / 11) ** (2 / 3)))
    assert float(method.mean(torch.tensor([1.0986123]))) == pytest.approx(0.75 * 1.2 - 0.1)
    assert float(method.sample(torch.tensor([1.0986123 * 2 / 3]), half)) == pytest.approx(0.75 * 1.2 - 0.1)


def test_learned_gates_follow_their_rule_said_naively() -> None:
    """Three dense and ten soft steps with planted gradients: the logits by bisection in place of Newton's method, and
    in the end the planted units have the highest. Would catch: a scale for every unit, a sign, a stale scale."""
    case = Case("l0", ("ffn",))
    _, structure_pruner = pruner_of(case)
    lagrangian = structure_pruner.training.lagrangian  # type: ignore[attr-defined]
    right = planted.planted(case.shape, ("ffn",))["ffn"]
    generator = torch.Generator().manual_seed(3)
    size = torch.where(right, 2.0, 0.5)
    grads = [-size * (1.0 + 0.3 * torch.randn(right.shape, generator=generator)) for _ in range(13)]
    due, temperatures = [0.1 * (t + 1) for t in range(10)], [1.0] * 7 + [0.8, 0.6, 0.5]
    expected = Learner(case.shape, case.budget_settings, ("ffn",), "l0", Options())
    for grad in grads[:3]:
        lagrangian.observe(grad.flatten(), grad.abs().flatten())
        expected.observe({"ffn": grad}, {"ffn": grad.abs()})
    a = lagrangian.begin(torch.full((right.numel(),), structure_pruner.method.initial))  # type: ignore[attr-defined]
    expected.begin()
    torch.testing.assert_close(a.view(right.shape), expected.a["ffn"].float(), rtol=1e-4, atol=1e-4)
    for t, grad in enumerate(grads[3:]):
        a = lagrangian.weigh(a, grad.abs().flatten())
        a, _ = lagrangian.step(a, grad.flatten(), temperatures[t], due[t])
        expected.step({"ffn": grad}, {"ffn": grad.abs()}, temperatures[t], due[t])
        torch.testing.assert_close(a.view(right.shape), expected.a["ffn"].float(), rtol=0, atol=2e-2, msg=f"step {t}")
    assert torch.equal(a.view(right.shape).argsort(1)[:, -4:].sort(1).values, right.nonzero()[:, 1].view(-1, 4))
