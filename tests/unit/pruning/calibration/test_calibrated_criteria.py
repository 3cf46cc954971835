"""Criteria that look at inputs, against exhaustive search, normal equations and the papers' own rules."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from pat.pruning import registry, scopes
from pat.pruning.calibration.statistics import Gram, SquaredNorm
from pat.pruning.criteria.alps import Alps, Resolvent, damped_, fitted
from pat.pruning.weights.allocation import Weighing
from pat.pruning.weights.calibrated import Method, _cut_group
from pat.pruning.weights.whole import chooser, keep_top_of_rows

SPARSITY = 0.5


def problem(seed: int, outputs: int = 6, inputs: int = 8, tokens: int = 40) -> tuple[Tensor, Tensor]:
    """Weights, and the Gram matrix of inputs that depend on each other and have different sizes."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=generator)
    x = torch.randn(tokens, inputs, generator=generator) @ mix * torch.logspace(-0.5, 0.5, inputs)
    return torch.randn(outputs, inputs, generator=generator), x.T @ x / tokens


def choose(
    scope: str = "row", granularity: object = "weight", sparsity: float = SPARSITY
) -> Callable[[Tensor], Tensor]:
    return chooser("matrix", registry.build("granularity", granularity), sparsity, scopes.build(scope))


def cut(
    criterion: Any, weights: Tensor, inputs: dict[Any, Tensor], choosing: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The criterion's, which may use up what it is given."""
    prepared = criterion.prepare({kind: value.clone() for kind, value in inputs.items()})
    return criterion.cut(weights.clone(), prepared, choosing)


def loss(weights: Tensor, found: Tensor, gram: Tensor) -> Tensor:
    """(o,) mean square error of each output."""
    gap = (weights - found).double()
    return ((gap @ gram.double()) * gap).sum(1)


def solved(weights: Tensor, gram: Tensor, keep: Tensor) -> Tensor:
    """The best weights on a mask, one row's normal equations after the other, in fp64."""
    found, wide = torch.zeros_like(weights, dtype=torch.float64), gram.double()
    for row, flags in enumerate(keep):
        on = flags.nonzero().squeeze(1)
        found[row, on] = torch.linalg.solve(wide[on][:, on], wide[on] @ weights[row].double())
    return found


@pytest.mark.parametrize("seed", range(4))
def test_alps_is_near_the_best_of_all_masks_and_ahead_of_wanda(seed: int) -> None:
    weights, gram = problem(seed)
    _, found = cut(Alps(), weights, {Gram: gram}, choose())
    masks = torch.zeros(70, 8, dtype=torch.bool)
    for i, chosen in enumerate(combinations(range(8), 4)):
        masks[i, list(chosen)] = True
    within = damped_(gram.clone(), Alps().damping)
    best = torch.stack([loss(weights, solved(weights, within, m.expand_as(weights)), within) for m in masks]).amin(0)
    by_norm = choose()(weights.abs() * gram.diagonal().sqrt())
    wanda_fitted = loss(weights, solved(weights, within, by_norm), within)
    mine = loss(weights, found, within)
    assert (mine >= best * (1 - 1e-3)).all()
    assert mine.sum() <= 1.25 * best.sum() and mine.sum() <= 1.001 * wanda_fitted.sum()


def test_survivors_solve_the_normal_equations_of_their_mask() -> None:
    weights, gram = problem(0)
    scale = gram.diagonal().sqrt()
    keep = choose()(weights.abs())
    found = fitted(weights * scale, gram / scale[:, None] / scale, keep, weights * scale, 60) / scale
    torch.testing.assert_close(found.double(), solved(weights, gram, keep), rtol=1e-3, atol=1e-4)
    assert not found[~keep].any()


@pytest.mark.parametrize("scope", ["row", "matrix"])
def test_with_inputs_that_do_not_depend_on_each_other_it_is_nearly_wanda(scope: str) -> None:
    """Wanda is then the best there is, and nothing is left to fit; ADMM ends within a few hundredths of it."""
    norms, ratios = torch.logspace(-1, 1, 8), list[float]()
    gram = torch.diag(norms)
    for seed in range(40):
        weights, _ = problem(seed)
        keep, found = cut(Alps(damping=1e-9), weights, {Gram: gram}, choose(scope))
        _, best = cut(registry.build("criterion", "wanda"), weights, {SquaredNorm: norms.double()}, choose(scope))
        torch.testing.assert_close(found, weights * keep)
        ratios.append(float(loss(weights, found, gram).sum() / loss(weights, best, gram).sum()))
    assert min(ratios) > 1 - 1e-6 and max(ratios) < 1.5 and sum(ratios) / len(ratios) < 1.03


@pytest.mark.parametrize("n", [1, 2])
def test_wanda_keeps_the_n_highest_scores_of_every_four_inputs(n: int) -> None:
    """|W| times the norm of the input (arXiv:2306.11695, section 3), within each group of each output."""
    weights, gram = problem(5)
    norms = gram.diagonal()
    keep, kept = cut(
        registry.build("criterion", "wanda"), weights, {SquaredNorm: norms.double()},
        choose("global", {"name": "n_of_m", "n": n, "m": 4}, 1 - n / 4),
    )  # fmt: skip
    for row, flags in zip(weights.abs() * norms.sqrt(), keep, strict=True):
        for first in range(0, 8, 4):
            best = sorted(range(first, first + 4), key=lambda i, row=row: -row[i])[:n]
            assert {i for i in range(first, first + 4) if flags[i]} == set(best)
    assert torch.equal(kept, torch.where(keep, weights, 0.0))


@pytest.mark.parametrize("scope", ["row", "matrix"])
def test_what_wanda_has_removed_stays_removed_when_inputs_die(scope: str) -> None:
    """Fails if weights of a dead input, which score as low as those that are gone, go in their place."""
    generator = torch.Generator().manual_seed(3)
    weights, norms = torch.randn(32, 64, generator=generator), torch.rand(64, generator=generator).double()
    wanda = registry.build("criterion", "wanda")
    first, left = cut(wanda, weights, {SquaredNorm: norms}, choose(scope, sparsity=0.3))
    norms[::4] = 0.0
    second, _ = cut(wanda, left, {SquaredNorm: norms}, choose(scope, sparsity=0.4))
    assert not bool((second.bool() & ~first.bool()).any())
    assert float(second.float().mean()) == pytest.approx(0.6, abs=0.01)


def test_zeros_in_a_block_count_for_nothing() -> None:
    """Fails if what is put below all other scores, so that it stays gone, weighs more than a block's own weights."""
    generator = torch.Generator().manual_seed(4)
    weights, norms = 0.02 * torch.randn(32, 64, generator=generator), 1.0 + torch.rand(64, generator=generator)
    weights[torch.rand(32, 64, generator=generator) < 0.3] = 0.0
    granularity = {"name": "block", "rows": 8, "cols": 8}
    wanda = registry.build("criterion", "wanda")
    keep, _ = cut(wanda, weights, {SquaredNorm: norms.double()}, choose("matrix", granularity, 0.25))
    sums = (weights.abs() * norms.sqrt()).view(4, 8, 8, 8).sum((1, 3))
    expected = sums > sums.flatten().kthvalue(8).values
    assert torch.equal(keep.view(4, 8, 8, 8).bool(), expected[:, None, :, None].expand(4, 8, 8, 8))


def test_wanda_is_the_papers_rule() -> None:
    weights = torch.tensor([[1.0, -2.0, 3.0, -4.0], [4.0, 3.0, -2.0, 1.0]])
    keep, kept = cut(
        registry.build("criterion", "wanda"),
        weights,
        {SquaredNorm: torch.tensor([100.0, 1.0, 1.0, 0.0], dtype=torch.float64)},
        choose(),
    )
    assert keep.tolist() == [[True, False, True, False], [True, True, False, False]]
    assert torch.equal(kept, weights * keep)


@pytest.mark.parametrize("granularity", [{"name": "n_of_m", "n": 2, "m": 4}, {"name": "block", "rows": 2, "cols": 2}])
def test_alps_takes_any_granularity(granularity: dict[str, object]) -> None:
    weights, gram = problem(2)
    keep, found = cut(Alps(), weights, {Gram: gram}, choose("matrix", granularity))
    if granularity["name"] == "n_of_m":
        assert (keep.view(-1, 4).sum(1) == 2).all()
    else:
        blocks = keep.view(3, 2, 4, 2).transpose(1, 2).reshape(12, 4).sum(1)
        assert sorted(blocks.tolist()) == [0] * 6 + [4] * 6
    assert not found[~keep].any() and torch.isfinite(found).all()


def test_what_an_earlier_cut_removed_stays_removed() -> None:
    weights, gram = problem(3)
    keep, found = cut(Alps(), weights, {Gram: gram}, choose(sparsity=0.25))
    later, _ = cut(Alps(), found, {Gram: gram}, choose())
    assert not (later & ~keep).any()


def test_an_input_that_is_always_zero_goes_first_and_none_at_all_is_refused() -> None:
    weights, gram = problem(4)
    gram[3], gram[:, 3] = 0, 0
    keep, found = cut(Alps(), weights, {Gram: gram}, choose())
    assert not keep[:, 3].any() and torch.isfinite(found).all()
    nothing = {Gram: torch.zeros_like(gram), SquaredNorm: torch.zeros(len(gram))}
    for criterion in (Alps(), registry.build("criterion", "wanda")):
        with pytest.raises(ValueError, match=r"all inputs are 0 .*; exclude it .*other samples \(data.calibration\)"):
            cut(criterion, weights, nothing, choose())


def test_rows_keep_exactly_their_share_and_of_equals_the_first() -> None:
    scores = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 2.0, 3.0]])
    assert keep_top_of_rows(scores, 2).tolist() == [[True, True, False, False], [False, True, False, True]]
    assert not keep_top_of_rows(scores, 0).any()


@pytest.mark.parametrize(
    "wrong",
    [
        {"damping": 0.0},
        {"iterations": 0},
        {"refinements": -1},
        {"reconstruct": -1},
        {"reconstruct_lr": 1.0},  # of no passes
    ],
)
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        registry.build("criterion", {"name": "alps", **wrong})


@pytest.mark.parametrize("outputs", [24, 32, 40], ids=["by a factor", "by the inverse", "by the inverse of fewer"])
def test_a_resolvent_is_the_inverse_for_every_rho_in_any_order(outputs: int) -> None:
    """Would catch: the factor or the inverse of an earlier rho, or of a matrix of another shape, used again."""
    right, gram = problem(3, outputs, 32, 200)
    resolvent, narrow = Resolvent(gram), torch.randn(3, 32)
    for rho in (0.1, 2.0, 2.0, 0.1):
        exact = torch.linalg.inv(gram.double() + rho * torch.eye(32, dtype=torch.float64))
        for matrix in (right, narrow):
            found = resolvent(matrix.clone(), rho)
            torch.testing.assert_close(found.double(), matrix.double() @ exact, rtol=1e-4, atol=1e-4)


def test_nothing_is_fitted_into_inputs_that_gates_have_removed() -> None:
    """2:4 keeps two of four everywhere: those of a removed unit must stay 0, whatever little still comes in there."""
    generator = torch.Generator().manual_seed(0)
    dense, x = torch.randn(6, 16, generator=generator), torch.randn(64, 16, generator=generator)
    dense[:, 4:8] = 0.0
    two_of_four = {"name": "n_of_m", "n": 2, "m": 4}
    method = Method(
        Alps(iterations=20, refinements=4), registry.build("granularity", two_of_four), 0.5, scopes.build("matrix"), 0
    )
    made, said = _cut_group(method, Weighing(), {"w": dense.clone()}, {"w": {Gram: x.T @ x / 64}})
    keep, fitted = made["w"]
    assert not said and int(keep[:, 4:8].sum()) == 12 and not fitted[:, 4:8].any()
    alive = torch.cat([fitted[:, :4], fitted[:, 8:]], 1)
    assert int(alive.count_nonzero()) == 36 and not torch.equal(alive, torch.cat([dense[:, :4], dense[:, 8:]], 1))
