"""Every registered criterion, by its contract; and the formulas by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from pat.pruning import registry
from pat.pruning.criteria import Place
from pat.pruning.criteria.soft_movement import logistic_slope
from tests import models

NAMES = models.elementwise_criteria()
SCORED = [name for name in NAMES if registry.classes("criterion")[name].needs_score]  # type: ignore[attr-defined]
COEF = torch.tensor(0.013)


def evidence(n: int = 1003, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(score, dense, grad), (n,) each."""
    generator = torch.Generator().manual_seed(seed)
    score, dense, grad = torch.randn(3, n, generator=generator)
    return score * 3, dense * 0.02, grad * 1e-3


def edge_cases() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All triples of zeros of both signs, denormals, small and large finite values."""
    values = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1e-39, 1e-30, -1.0, 1e4, -1e9])
    score, dense, grad = torch.cartesian_prod(values, values, values).T
    return score.contiguous(), dense.contiguous(), grad.contiguous()


def at(name: str, start: int, seed: int = 0) -> Place:
    return Place(name, (200_000,), start, seed)


@pytest.mark.parametrize("name", NAMES)
def test_contract(name: str) -> None:
    criterion = registry.build("criterion", name)
    score, dense, grad = evidence()
    before = [t.clone() for t in (score, dense, grad)]
    updated = criterion.update(score, dense, grad, COEF)
    again = criterion.update(score, dense, grad, COEF)
    ranks = [
        criterion.rank(score if criterion.needs_score else None, dense),
        criterion.rank_at(at("a.weight", 7, 1), score if criterion.needs_score else None, dense),
    ]
    assert all(torch.equal(a, b) for a, b in zip(before, (score, dense, grad), strict=True)), "not pure"
    assert torch.equal(updated, again)
    assert criterion.needs_score or updated is score
    for out in (updated, *ranks):
        assert out.dtype == torch.float32 and out.shape == dense.shape and not out.isnan().any()
    assert criterion.threshold is None or isinstance(criterion.threshold, float)
    coefs = [criterion.coefficient(p / 10) for p in range(11)]
    assert all(isinstance(c, float) and math.isfinite(c) for c in coefs) and coefs == sorted(coefs)


@pytest.mark.parametrize("name", NAMES)
def test_no_nan_at_the_edges(name: str) -> None:
    criterion = registry.build("criterion", name)
    score, dense, grad = edge_cases()
    assert not criterion.update(score, dense, grad, COEF).isnan().any()
    assert not criterion.rank_at(at("a", 0), score if criterion.needs_score else None, dense).isnan().any()


@pytest.mark.parametrize("name", NAMES)
def test_pieces_equal_the_whole(name: str) -> None:
    criterion = registry.build("criterion", name)
    tensors = evidence(20_011)
    score, dense, _ = tensors
    whole = criterion.update(*tensors, COEF)
    for size in (7, 37, 4099):
        pieces = [criterion.update(*part, COEF) for part in zip(*(t.split(size) for t in tensors), strict=True)]
        assert torch.equal(torch.cat(pieces), whole)
    ranks = criterion.rank_at(at("a", 11, 5), score, dense)
    starts = range(11, 11 + dense.numel(), 37)
    runs = [
        criterion.rank_at(at("a", start, 5), s, d)
        for start, s, d in zip(starts, score.split(37), dense.split(37), strict=True)
    ]
    assert torch.equal(torch.cat(runs), ranks)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCORED)
def test_compiled_equals_eager(name: str) -> None:
    """In the quick set: the kernels that call it (weights/test_kernels.py)."""
    criterion = registry.build("criterion", name)
    torch.compiler.reset()
    compiled = torch.compile(criterion.update, dynamic=True, fullgraph=True)
    for tensors in (evidence(1003), evidence(517, seed=1), edge_cases()):
        assert torch.equal(compiled(*tensors, COEF), criterion.update(*tensors, COEF))


def test_magnitude() -> None:
    assert registry.build("criterion", "magnitude").rank(None, torch.tensor([-2.0, 1.0, -0.0])).tolist() == [2, 1, 0]


def test_movement_is_descent_on_the_score_through_the_mask() -> None:
    dense, mask = torch.tensor([1.5, -2.0, 0.5]), torch.tensor([1.0, 0.0, 1.0])
    mask.requires_grad_()
    effective = dense * mask
    effective.retain_grad()
    (effective * torch.tensor([0.3, 0.7, -0.2])).sum().backward()
    assert mask.grad is not None and effective.grad is not None
    score = registry.build("criterion", "movement").update(torch.zeros(3), dense, effective.grad, 0.0)
    assert torch.equal(score, -mask.grad)


def test_soft_movement_is_descent_on_loss_and_penalty() -> None:
    criterion = registry.build("criterion", {"name": "soft_movement", "rate": 10.0, "final_lambda": 0.5, "ramp": 1.0})
    score, dense, grad = evidence(50)
    score.requires_grad_()
    coef = criterion.coefficient(0.4)
    assert coef == pytest.approx(0.2)
    (10.0 * (score * dense * grad).sum() + coef * torch.sigmoid(score).sum()).backward()
    assert score.grad is not None
    expected = score.detach() - score.grad
    torch.testing.assert_close(criterion.update(score.detach(), dense, grad, coef), expected, rtol=0.0, atol=2e-4)


def test_logistic_slope() -> None:
    for limit, tolerance in ((5.0, 1e-4), (9.0, 1e-3)):
        x = torch.linspace(-limit, limit, 2001)
        exact = torch.sigmoid(x.double()) * torch.sigmoid(-x.double())
        assert float((logistic_slope(x) / exact - 1.0).abs().max()) < tolerance
    assert logistic_slope(torch.tensor([1e9, -3e38])).tolist() == [0.0, 0.0]


def test_soft_movement_threshold_is_tau_on_the_sigmoid() -> None:
    criterion = registry.build("criterion", {"name": "soft_movement", "tau": 0.2})
    score = torch.linspace(-4, 4, 1001)
    assert torch.equal(criterion.rank(score, score) > criterion.threshold, torch.sigmoid(score) > 0.2)
    assert criterion.threshold < 0.0  # scores start at 0: all is kept


def test_taylor_is_an_average() -> None:
    criterion = registry.build("criterion", {"name": "taylor", "decay": 0.75})
    dense, grad = torch.tensor([2.0, -2.0]), torch.tensor([-3.0, 0.5])
    score = torch.zeros(2)
    for _ in range(2):
        score = criterion.update(score, dense, grad, 0.0)
    assert score.tolist() == [6 * (1 - 0.75**2), 1 * (1 - 0.75**2)]


def test_random_is_uniform_and_depends_on_seed_parameter_and_index_only() -> None:
    criterion = registry.build("criterion", "random")
    zeros = torch.zeros(200_000)
    ranks = criterion.rank_at(at("a", 0, 1), None, zeros)
    assert 0.0 <= float(ranks.min()) and float(ranks.max()) < 1.0
    assert float(torch.histc(ranks, 10, 0, 1).sub(20_000).abs().max()) < 600
    assert torch.equal(criterion.rank_at(at("a", 100_000, 1), None, torch.ones(10)), ranks[100_000:100_010])
    for other in (criterion.rank_at(at("b", 0, 1), None, zeros), criterion.rank_at(at("a", 0, 2), None, zeros)):
        correlation = torch.corrcoef(torch.stack([ranks, other]))[0, 1]
        assert abs(float(correlation)) < 0.01
    lag = torch.corrcoef(torch.stack([ranks[:-1], ranks[1:]]))[0, 1]
    assert abs(float(lag)) < 0.01


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "soft_movement", "tau": 0.5},
        {"name": "soft_movement", "tau": 0.0},
        {"name": "soft_movement", "rate": 0.0},
        {"name": "taylor", "decay": 1.0},
        {"name": "movement", "prior": -1.0},
        {"name": "movement", "prior_steps": 0.0},
        {"name": "movement", "prior": 1.0, "prior_steps": 30.0},
    ],
)
def test_bad_settings_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="but"):
        registry.build("criterion", fields)


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        registry.build("criterion", "taylor").decay = 0.5


@pytest.mark.parametrize("prior", [0.5, 2.0])
def test_movement_starts_from_squared_weights(prior: float) -> None:
    """By hand: prior * W^2, which grows faster than |W| and is not negative."""
    criterion = registry.build("criterion", {"name": "movement", "prior": prior})
    start = criterion.initial(torch.tensor([0.1, -3.0, 0.0]))
    torch.testing.assert_close(start, prior * torch.tensor([0.01, 9.0, 0.0]))
