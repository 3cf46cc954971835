"""Learned gates: which units stay, against planted importance, the papers' formulas, and every choice there is."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pat.models import families
from pat.models.anatomy import Anatomy
from pat.pruning import registry
from pat.pruning.gates import Learned
from pat.pruning.structures.costs import dense_widths, widths
from pat.pruning.structures.gate_state import GateState
from pat.pruning.structures.gate_training import LearnedTraining, Moment, noise_seed
from pat.pruning.structures.lagrangian import Lagrangian
from tests import models as small
from tests.sets import thinned

LEARNED = [name for name in registry.names("gate") if isinstance(registry.build("gate", name), Learned)]
STEPS, DENSE, RAMPED, CLOSED = 200, 10, 100, 50  # of a run; the first of them dense; until the target; at its end


# -- the methods -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEARNED)
def test_learned_gates_are_gates(name: str) -> None:
    """In [0, 1]; closed where a is low and 1 where it is high; openness rises with a and has a gradient."""
    method = registry.build("gate", name)
    a = torch.linspace(-12, 12, 49, requires_grad=True)
    for z in (method.sample(a, torch.full_like(a, 0.5)), method.mean(a)):
        assert z[0] == 0.0 and z[-1] == 1.0 and ((0 <= z) & (z <= 1)).all() and (z.diff() >= 0).all()
    is_open = method.open(a)
    assert is_open[0] < 0.01 and is_open[-1] > 0.99 and (is_open.diff() >= 0).all()
    (grad,) = torch.autograd.grad(is_open.sum(), a)
    assert (grad >= 0).all() and grad[24] > 0


def test_l0_is_the_hard_concrete_distribution() -> None:
    """Louizos et al. 2018, equations 10 to 13, written anew with their constants; and P(z > 0) by counting."""
    method = registry.build("gate", "l0")
    beta, gamma, zeta = 2 / 3, -0.1, 1.1
    noise = torch.rand(200_000, generator=torch.Generator().manual_seed(0)).double().clamp(1e-6, 1 - 1e-6)
    for a in (-2.0, 0.0, 2.0):
        s = 1 / (1 + torch.exp(-(torch.log(noise) - torch.log(1 - noise) + a) / beta))
        expected = torch.clamp(s * (zeta - gamma) + gamma, 0, 1)
        z = method.sample(torch.full_like(noise, a), noise)
        assert torch.allclose(z, expected, atol=1e-12)
        is_open = 1 / (1 + math.exp(-(a - beta * math.log(-gamma / zeta))))
        assert float(method.open(torch.tensor(a))) == pytest.approx(is_open, rel=1e-6)
        assert float((z > 0).double().mean()) == pytest.approx(is_open, abs=4e-3)
        mean = min(1.0, max(0.0, (zeta - gamma) / (1 + math.exp(-a)) + gamma))
        assert float(method.mean(torch.tensor(a))) == pytest.approx(mean, rel=1e-6)


def test_pruners_and_steps_have_noise_of_their_own() -> None:
    """Would catch: two learned pruners, or two steps, or two runs, whose gates open and close together."""
    assert len({noise_seed(seed, name, t) for seed in (0, 1) for name in ("ffn", "heads") for t in (0, 1)}) == 8


# -- what is worth keeping stays ---------------------------------------------------------------------------------------


class Planted:
    """Half of 1,024 units, in one constraint."""

    ties_sites = False
    units = 1024

    def expected_sparsity(self, anatomy: Any, sites: Any, open: dict[str, Tensor]) -> Tensor:
        return (1.0 - open["site"].mean()).reshape(1)

    def target_sparsity(self, anatomy: Any, sites: Any) -> list[float]:
        return [0.5]


def moment(t: int) -> Moment:
    """Of a run of STEPS."""
    ramp = min(1.0, max(0.0, (t - DENSE) / (RAMPED - DENSE)))
    closing = min(1.0, max(0.0, (t + 1 - (STEPS - CLOSED)) / CLOSED))
    return Moment(t, "dense" if t < DENSE else "soft", ramp, closing)


def run(training: LearnedTraining, units: int, gradient: Any, dense: int = DENSE) -> tuple[GateState, dict[str, float]]:
    """A run against dL/dz = gradient(z, t)."""
    state = GateState(torch.ones(units), torch.ones(units).bool(), training.initial(torch.ones(units)))
    figures: dict[str, float] = {}
    for t in range(DENSE - dense, STEPS):
        now = moment(t)
        z = torch.ones(units)
        if now.phase == "soft":
            training.advance(state, now, None)
            z, _ = training.gates(state, now)
        grad = gradient(z, t)
        figures = training.learn(state, torch.stack([grad, grad.abs()]), now)
    return state, figures


def noisy(kind: str, worth: Tensor, z: Tensor, generator: torch.Generator) -> Tensor:
    """DL/dz where closing unit i costs worth_i: exactly, or to second order, which leaves no slope at z = 1."""
    n = torch.randn(worth.shape, generator=generator)
    if kind == "proportional":
        return -worth + 3 * worth * n
    if kind == "constant":
        return -worth + worth.mean() * n
    if kind == "heavy tails":
        return -worth + worth * n / (torch.randn(worth.shape, generator=generator).abs() + 0.1)
    return -2 * worth * (1 - z) + 2 * worth * n


@pytest.mark.parametrize("dense", [DENSE, 0])
@pytest.mark.parametrize("kind", ["proportional", "constant", "heavy tails", "at a minimum"])
@pytest.mark.parametrize("name", LEARNED)
def test_units_rank_by_what_they_are_worth(name: str, kind: str, dense: int) -> None:
    """1,024 units whose worth spans three decades: rank correlation, and the worth of what goes (random: 0.5, least
    possible: 0.03). Adam per unit gives 0.0 and 0.5. Would catch: any scale of a unit's own; gates that ascend."""
    generator = torch.Generator().manual_seed(5)
    worth = 10 ** (3 * torch.rand(Planted.units, generator=generator) - 4)
    method = registry.build("gate", name)
    training = LearnedTraining(method, Lagrangian(method, Planted(), None, [_site()]), "narrow", 0)  # type: ignore[arg-type]
    state, figures = run(training, Planted.units, lambda z, t: noisy(kind, worth, z, generator), dense)
    ranks = torch.stack([x.argsort().argsort().double() for x in (state.score, worth)])
    assert torch.corrcoef(ranks)[0, 1] >= 0.8
    kept = torch.zeros(Planted.units, dtype=torch.bool)
    kept[training.scores(state).topk(Planted.units // 2).indices] = True
    assert worth[~kept].sum() / worth.sum() < 0.08
    assert abs(figures["gap"]) < 0.01
    final, mean = training.final(state), method.mean(state.score / method.temperature)
    assert final[kept].median() > 0.99 and mean[~kept].median() < 0.01, "gates end at 0 or 1"
    assert torch.equal(final[mean > 0], mean[mean > 0]) and (final > 0).all(), "no unit that is kept is closed"
    state.keep[:] = True
    said = training.spread(state)
    assert said is not None and said["lowest"] == 0.0 and said["share_below_0.9"] > 0.4, "what ended closed is said"
    assert figures["undecided"] < 0.15


@pytest.mark.parametrize("name", LEARNED)
def test_units_that_an_evaluation_lets_through_count_as_kept(name: str) -> None:
    """While soft; before and after no step moves a flag. Before the first step all are as open as `initial` says."""
    method = registry.build("gate", {"name": name, "initial": 1.5})
    training = LearnedTraining(method, Lagrangian(method, Planted(), None, [_site()]), "narrow", 0)  # type: ignore[arg-type]
    assert training.initial(torch.ones(2)).tolist() == [1.5, 1.5]
    a = torch.tensor([-9.0, 9.0]).repeat(Planted.units // 2)
    state = GateState(torch.ones(Planted.units), torch.ones(Planted.units).bool(), a)
    kept = training.kept(state, Moment(DENSE, "soft", 0.5, 0.0))
    assert kept is not None and torch.equal(kept, a > 0)
    assert all(training.kept(state, Moment(t, phase, 1.0, 1.0)) is None for t, phase in ((0, "dense"), (99, "hard")))


def _site() -> Any:
    return SimpleNamespace(name="site", num_units=Planted.units, structure="ffn")


# -- the budget --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    return families.anatomy(small.model("llama"))


CONSTRAINTS: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (("ffn",), {"name": "parameters", "sparsity": 0.3}),
    (("ffn", "kv_groups"), {"name": "flops", "sparsity": 0.25, "seq_len": 16}),
    (("ffn", "layers"), {"name": "parameters", "sparsity": 0.4, "per_layer": True, "hf_compatible": False}),
    (("ffn", "kv_groups"), {"name": "shape", "keep": {"ffn": 64, "kv_groups": 2}}),
]


@pytest.mark.parametrize(
    ("name", "structures", "budget"), thinned([(name, *each) for name in LEARNED for each in CONSTRAINTS], 3)
)
def test_the_constraints_hold(anatomy: Anatomy, name: str, structures: tuple[str, ...], budget: dict[str, Any]) -> None:
    """At every step from the end of the ramp on, within 1 %, without a loss and against one that opens all gates; sites
    that must end equally wide are so in expectation."""
    sites = small.sites(anatomy, *structures)
    method, chosen = registry.build("gate", name), registry.build("budget", budget)
    generator = torch.Generator().manual_seed(1)
    for pull in (0.0, -1e-3):
        lagrangian = Lagrangian(method, chosen, anatomy, sites)
        a = method.initial + torch.randn(sum(lagrangian.sizes), generator=generator)
        for t in range(120):
            temperature = method.temperature ** max(0.0, (t - 90) / 30)
            grad = pull * torch.rand(a.shape, generator=generator)
            a, _ = lagrangian.step(a, grad, temperature, min(1.0, t / 60))
            if t >= 60:
                is_open = method.open(a / temperature)
                by_site = {s.name: part for s, part in zip(sites, is_open.split(lagrangian.sizes), strict=True)}
                gap = chosen.expected_sparsity(anatomy, sites, by_site) - lagrangian.final
                assert gap.abs().max() < 0.01, (t, gap)
                if budget.get("per_layer") is None:
                    for structure in structures:
                        own = [float(by_site[s.name].mean()) for s in sites if s.structure == structure]
                        assert max(own) - min(own) < 0.01, (t, structure, own)


def test_a_step_is_the_formula(anatomy: Anatomy) -> None:
    """A - lr (g + l c) / r in plain arithmetic, with one l for all units that makes the constraint hold. Would catch:
    an l that is not used, a cost that is not counted, a scale per unit, the wrong sign."""
    sites = small.sites(anatomy, "ffn", "kv_groups")
    method = registry.build("gate", "l0")
    chosen = registry.build(
        "budget", {"name": "parameters", "sparsity": 0.3, "per_layer": True, "hf_compatible": False}
    )
    lagrangian = Lagrangian(method, chosen, anatomy, sites)
    generator = torch.Generator().manual_seed(2)
    sizes = lagrangian.sizes
    a, grad = (torch.randn(sum(sizes), generator=generator) for _ in range(2))
    moved, figures = lagrangian.step(a, grad, 1.0, 1.0)
    cost, scale = [], []
    whole = sum(p.numel() for p in small.model("llama").parameters())
    for site, part in zip(sites, grad.split(sizes), strict=True):
        alike = torch.cat([g for s, g in zip(sites, grad.split(sizes), strict=True) if s.structure == site.structure])
        cost += [chosen.cost(anatomy).per_unit(site, dense_widths(anatomy)) / whole] * len(part)
        scale += [float(alike.square().mean().sqrt())] * len(part)
    force = (a - moved) * torch.tensor(scale) / method.lr - grad
    multiplier = force / torch.tensor(cost)
    assert float(multiplier.std()) < 1e-3 * float(multiplier.abs().mean())
    assert figures["multiplier"] == pytest.approx(float(multiplier.abs().mean()), rel=1e-3)


@pytest.mark.parametrize("seed", thinned(range(4), 4))
@pytest.mark.parametrize("heads", ["cheap for their worth", "dear for their worth"])
@pytest.mark.parametrize("name", LEARNED)
def test_the_final_choice_is_what_the_loss_wants(anatomy: Anatomy, name: str, heads: str, seed: int) -> None:
    """Neurons and KV groups under one budget of parameters: of all shapes that the budget allows, the one whose units
    are worth most. Would catch: keep probabilities that are divided by cost, so that the big units go first."""
    sites = small.sites(anatomy, "ffn", "kv_groups")
    chosen = registry.build("budget", {"name": "parameters", "sparsity": 0.3, "multiple_of": 16})
    method = registry.build("gate", name)
    generator = torch.Generator().manual_seed(seed)
    cost, dense = chosen.cost(anatomy), dense_widths(anatomy)
    worth = []
    for site in sites:
        factor = {"ffn": 1.0, "kv_groups": 6.0 if heads.startswith("cheap") else 0.1}[site.structure]
        spread = 10 ** (torch.rand(site.num_units, generator=generator) - 0.5)
        worth.append(factor * cost.per_unit(site, dense) * 1e-6 * spread)
    flat = torch.cat(worth)
    training = LearnedTraining(method, Lagrangian(method, chosen, anatomy, sites), "narrow", seed)
    state, _ = run(training, len(flat), lambda z, t: -flat * (1 + 0.5 * torch.randn(flat.shape, generator=generator)))
    scores = dict(zip([s.name for s in sites], training.scores(state).split([s.num_units for s in sites]), strict=True))
    choice = chosen.choose(anatomy, sites, scores, per_cost=training.per_cost)
    kept = sum(float(w[choice.keep[s.name]].sum()) for s, w in zip(sites, worth, strict=True))
    best = max(
        sum(
            float(w.topk({"ffn": neurons, "kv_groups": groups}[s.structure]).values.sum())
            for s, w in zip(sites, worth, strict=True)
        )
        for neurons, groups in itertools.product(range(16, 129, 16), (1, 2, 3, 4))
        if _total(anatomy, sites, cost, neurons, groups) <= math.floor(0.7 * choice.before)
    )
    assert kept >= 0.97 * best
    whole = choice.counts["kv_groups"][0] == 4
    assert whole == heads.startswith("cheap"), choice


def _total(anatomy: Anatomy, sites: list[Any], cost: Any, neurons: int, groups: int) -> int:
    counts = {"ffn": neurons, "kv_groups": groups}
    keep = {s.name: torch.arange(s.num_units) < counts[s.structure] for s in sites}
    return cost.total(widths(anatomy, sites, keep))
