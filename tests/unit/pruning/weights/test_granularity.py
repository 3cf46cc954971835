"""Weights, blocks and N:M groups against naive dense oracles, on any cut over any number of ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pat.common.comm import LOCAL
from pat.pruning import registry
from pat.pruning.criteria.alps import Alps
from pat.pruning.granularity.block import Block
from pat.pruning.granularity.n_of_m import NOfM
from pat.pruning.granularity.weight import Weight
from pat.pruning.scopes import Scope
from pat.pruning.scopes.all_matrices import Global
from pat.pruning.scopes.matrix import Matrix
from pat.pruning.scopes.row import Row
from pat.pruning.types import Granularity, ScoredSegment
from pat.pruning.weights import arrays, ranking
from tests.sets import thinned
from tests.thread_ranks import assert_same, oracle, select_on

WORLDS = (1, 2, 3, 8)
GRANULARITIES = [Weight(), Block(rows=4, cols=2), Block(rows=1, cols=12), NOfM(n=2, m=4), NOfM(n=1, m=3)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks even for small matrices."""
    monkeypatch.setattr(arrays, "CPU_CHUNK", 101)


def matrices(seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    """Two matrices and a stack of experts, all of whose sizes 2, 3 and 4 divide."""
    g = torch.Generator().manual_seed(seed)
    shapes = {"q": (16, 24), "down": (8, 36), "experts": (3, 4, 12)}
    return {name: torch.randn(shape, generator=g) * scale for name, shape in shapes.items()}


def tied(seed: int) -> dict[str, Tensor]:
    """Few values, so that sums and groups tie often."""
    return {name: p.round() for name, p in matrices(seed).items()}


def block_sums(parameters: dict[str, Tensor], rows: int, cols: int) -> dict[str, Tensor]:
    """Whole-numbered scores only: their fp64 sums are exact."""
    views = {n: p.view(-1, p.shape[-1]).double() for n, p in parameters.items()}
    return {n: v.view(v.shape[0] // rows, rows, v.shape[1] // cols, cols).sum((1, 3)) for n, v in views.items()}


def dense_blocks(
    parameters: dict[str, Tensor], flags: dict[str, np.ndarray], rows: int, cols: int
) -> dict[str, np.ndarray]:
    return {
        n: np.kron(flags[n], np.ones((rows, cols), np.uint8)).reshape(p.shape).astype(np.uint8)
        for n, p in parameters.items()
    }


def dense_n_of_m(scores: Tensor, k: int, m: int) -> np.ndarray:
    groups = scores.numpy().reshape(-1, m)
    keep = np.zeros_like(groups, np.uint8)
    np.put_along_axis(keep, np.argsort(-groups, axis=1, kind="stable")[:, :k], 1, axis=1)
    return keep.reshape(scores.shape)


@settings(max_examples=40)
@given(
    world_size=st.sampled_from(WORLDS),
    seed=st.integers(0, 10**6),
    size=st.sampled_from([(1, 1), (4, 2), (2, 12), (4, 12), (4, 1), (1, 6)]),
    sparsity=st.sampled_from([0.0, 0.3, 0.5, 0.95, 1.0]),
)
def test_blocks_equal_the_dense_oracle(world_size: int, seed: int, size: tuple[int, int], sparsity: float) -> None:
    parameters, block = tied(seed), Block(rows=size[0], cols=size[1])
    sums = block_sums(parameters, *size)
    removed = block.pruned_units({name: tuple(p.shape) for name, p in parameters.items()}, sparsity, Global())
    expected = oracle(sums, sum(s.numel() for s in sums.values()) - removed)
    found = select_on(world_size, parameters, lambda r, c: block.select(r, sparsity, Global(), c), seed, pieces=9)
    assert_same(found, dense_blocks(parameters, expected, *size))


@pytest.mark.parametrize(
    ("scale", "scope", "granularity"),
    thinned(product([1.0, 1e-40, 3e37], [Global(), Matrix()], GRANULARITIES), 3),
    ids=repr,
)
def test_masks_do_not_depend_on_ranks_or_cuts(scale: float, scope: Scope, granularity: Granularity) -> None:
    parameters = matrices(1, scale)
    parameters["q"][3, 4:9] = torch.tensor([math.inf, -math.inf, 0.0, -0.0, -math.inf])
    one = select_on(1, parameters, lambda r, c: granularity.select(r, 0.5, scope, c), pieces=0)
    removed = sum(int((flags == 0).sum()) for flags in one.values())
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    assert removed == granularity.pruned_units(shapes, 0.5, scope) * granularity.weights_per_unit
    for world_size in (1, 2, 3, 5, 8):
        for pieces in (1, 40):
            empty = [world_size - 1] if world_size > 1 and pieces == 1 else []
            found = select_on(
                world_size, parameters, lambda r, c: granularity.select(r, 0.5, scope, c), pieces=pieces, empty=empty
            )
            assert_same(found, one)


def test_an_infinite_score_outweighs_its_block() -> None:
    scores = torch.tensor(
        [
            [-math.inf, 100, math.inf, -100, math.inf, -math.inf, 1, 1],
            [100, 100, -100, -100, 100, 100, 100, 100],
        ]
    )  # block sums: -inf; +inf; 200 (one of each cancel); 202
    block = Block(rows=2, cols=2)
    for num_removed, kept in ((1, [0, 1, 1, 1]), (2, [0, 1, 0, 1]), (3, [0, 1, 0, 0])):
        sparsity = num_removed / 4
        found = select_on(2, {"w": scores}, lambda r, c, s=sparsity: block.select(r, s, Global(), c), pieces=5)
        assert found["w"][0, ::2].tolist() == kept


def test_block_threshold_is_the_mean() -> None:
    parameters = {"w": torch.arange(32.0).view(4, 8)}
    for world_size in (1, 3):
        found = select_on(
            world_size, parameters, lambda r, c: Block(rows=2, cols=4).select_threshold(r, 13.5, c), pieces=7
        )
        # block means: 5.5 and 9.5 above, 21.5 and 25.5 below
        assert_same(found, {"w": np.kron([[0, 0], [1, 1]], np.ones((2, 4))).astype(np.uint8)})
    exact = select_on(2, parameters, lambda r, c: Block(rows=2, cols=4).select_threshold(r, 5.5, c))
    assert exact["w"][0, 0] == 0 and exact["w"][0, 4] == 1


@settings(max_examples=40)
@given(
    world_size=st.sampled_from(WORLDS),
    seed=st.integers(0, 10**6),
    pattern=st.sampled_from([(2, 4), (1, 2), (1, 3), (3, 4), (5, 12)]),
    ties=st.booleans(),
    sparsity=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75]),
)
def test_n_of_m_equals_the_dense_oracle(
    world_size: int, seed: int, pattern: tuple[int, int], ties: bool, sparsity: float
) -> None:
    parameters, granularity = (tied if ties else matrices)(seed), NOfM(n=pattern[0], m=pattern[1])
    k = max(pattern[0], math.ceil((1 - sparsity) * pattern[1]))
    found = select_on(
        world_size, parameters, lambda r, c: granularity.select(r, sparsity, Matrix(), c), seed, pieces=30
    )
    assert_same(found, {name: dense_n_of_m(p, k, pattern[1]) for name, p in parameters.items()})


@pytest.mark.parametrize("m", range(2, 33))
def test_the_final_sparsity_of_n_of_m_is_exact(m: int) -> None:
    for n in range(1, m):
        granularity = NOfM(n=n, m=m)
        assert granularity.num_kept(1 - n / m) == n
        granularity.validate_target(1 - n / m)
        assert granularity.pruned_units({"w": (3, 2 * m)}, 1 - n / m, Global()) == 6 * (m - n)
    assert [NOfM(n=2, m=4).num_kept(s) for s in (0.0, 0.01, 0.25, 0.3, 0.5)] == [4, 4, 3, 3, 2]


def test_what_cannot_be_cut_or_reached_is_refused() -> None:
    with pytest.raises(ValueError, match=r"3 x 4 blocks do not divide w of 8 x 8"):
        Block(rows=3, cols=4).validate("w", (8, 8))
    with pytest.raises(ValueError, match="do not divide experts"):
        Block(rows=4, cols=1).validate("experts", (4, 6, 8))  # blocks may not cross from one expert to the next
    with pytest.raises(ValueError, match="input dimension 6 of w is not a multiple of m=4"):
        NOfM(n=2, m=4).validate("w", (4, 6))
    with pytest.raises(ValueError, match="2:4 can remove 0, 0.25, 0.5 of the weights"):
        NOfM(n=2, m=4).validate_target(0.6)
    for bad in (
        lambda: NOfM(n=4, m=4),
        lambda: NOfM(n=0, m=4),
        lambda: Block(rows=0, cols=4),
        lambda: Block(rows=1024, cols=1024),
    ):
        with pytest.raises(ValueError, match="needs"):
            bad()
    with pytest.raises(ValueError, match="threshold"):
        NOfM(n=2, m=4).select_threshold([], 0.0, LOCAL)
    for granularity in GRANULARITIES:
        granularity.validate("w", (8, 12))


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=repr)
def test_nan_names_the_parameter(granularity: Granularity) -> None:
    parameters = matrices(0)
    parameters["down"][5, 5] = math.nan
    with pytest.raises(ValueError, match="down"):
        select_on(3, parameters, lambda r, c: granularity.select(r, 0.5, Global(), c))


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=repr)
def test_one_rank_of_many_holds_nothing_at_all(granularity: Granularity) -> None:
    parameters = matrices(0)
    found = select_on(3, parameters, lambda r, c: granularity.select(r, 0.25, Global(), c), empty=[0, 2])
    assert_same(found, select_on(1, parameters, lambda r, c: granularity.select(r, 0.25, Global(), c)))


@dataclass(frozen=True, kw_only=True)
class Pattern(NOfM):
    """A granularity that no other file knows by name."""

    name: str = "pattern"


def test_what_can_rank_it_is_asked_of_the_granularity_and_not_of_its_name() -> None:
    alone = Alps(gradient_samples=0)
    ranking.check_scope("pruners.w", Global(), Pattern(n=1, m=2), alone, ())
    assert ranking.num_gradient_samples(Pattern(n=1, m=2), Global(), Alps()) == 0  # no matrices compete: no gradients
    with pytest.raises(ValueError, match="says nothing across matrices"):
        ranking.check_scope("pruners.w", Global(), Block(rows=1, cols=2), alone, ())
    with pytest.raises(ValueError, match="granularity block has units of its own"):
        ranking.check_scope("pruners.w", Row(), Block(rows=1, cols=2), alone, ())
    for granularity in (Pattern(n=1, m=2), Weight()):  # a pattern in each row is the same pattern
        ranking.check_scope("pruners.w", Row(), granularity, alone, ())
    assert Pattern(n=1, m=2).describe(Global()) == "1 of every 2 stay"


def test_a_matrix_of_too_few_units_is_refused_before_anything_is_trained() -> None:
    """128 x 128 blocks of a matrix of 384 x 384 are nine, of which 95 % are nine. Fails if the last cut finds it."""
    block, shapes = Block(rows=128, cols=128), {"k": (384, 384), "up": (1536, 384)}
    with pytest.raises(ValueError, match="would remove every weight of k, which has 9 units .* take smaller units"):
        ranking.check_room("pruners.w", Matrix(), block, shapes, 0.95)
    ranking.check_room("pruners.w", Matrix(), block, shapes, 0.9)


@pytest.mark.parametrize("n, m", [(2, 6), (1, 3), (3, 7), (5, 12)])
def test_a_pattern_takes_the_target_that_it_says(n: int, m: int) -> None:
    """Fails if a share of six digits, as the error prints it, is no multiple of 1/m."""
    pattern = NOfM(n=n, m=m)
    for slots in range(m - n + 1):
        said = float(f"{slots / m:g}")
        pattern.validate_target(said)
        assert pattern.num_kept(said) == m - slots
    with pytest.raises(ValueError, match="can remove"):
        pattern.validate_target(1 / m + 0.001)


def test_registered_with_fields_that_the_user_must_choose() -> None:
    assert registry.names("granularity") == ["block", "n_of_m", "weight"]
    assert registry.build("granularity", {"name": "block", "rows": 32, "cols": 16}) == Block(rows=32, cols=16)
    with pytest.raises(ValueError, match="n, m"):
        registry.build("granularity", "n_of_m")


def test_an_empty_run_is_no_trouble() -> None:
    w = torch.randn(8, 12)
    keep = torch.zeros(96, dtype=torch.uint8)
    segments = [ScoredSegment("w", (8, 12), a, w.view(-1)[a:b], keep[a:b]) for a, b in ((0, 50), (50, 50), (50, 96))]
    for granularity in GRANULARITIES:
        granularity.select(segments, 0.5, Global(), LOCAL)
        assert (
            int(keep.sum())
            == 96 - granularity.pruned_units({"w": (8, 12)}, 0.5, Global()) * granularity.weights_per_unit
        )
