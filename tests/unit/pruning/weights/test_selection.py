"""Exact selection against one gathered, stable sort."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pat.common.comm import LOCAL, Comm
from pat.pruning import scopes
from pat.pruning.scopes import Scope
from pat.pruning.scopes.all_matrices import Global
from pat.pruning.scopes.matrix import Matrix
from pat.pruning.types import ScoredSegment
from pat.pruning.weights import arrays, brackets, selection
from pat.pruning.weights.selection import (
    TargetMissed,
    keep_above,
    keep_top,
    keep_top_per_group,
    select_units,
)
from tests.sets import thinned
from tests.thread_ranks import assert_same, cut, oracle, run_ranks, select_on

WORLDS = (1, 2, 3, 8)
SMALL = {"CPU_CHUNK": 37, "SAMPLE": 64, "SAMPLE_PER_GROUP": 16, "MIN_COPIED": 40}


@pytest.fixture(autouse=True, params=["numpy", "torch"])
def small_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks, samples and copies so small that a few hundred scores take every path; both array libraries."""
    monkeypatch.setattr(arrays, "CPU_CHUNK", SMALL["CPU_CHUNK"])
    monkeypatch.setattr(brackets, "SAMPLE", SMALL["SAMPLE"])
    monkeypatch.setattr(brackets, "SAMPLE_PER_GROUP", SMALL["SAMPLE_PER_GROUP"])
    monkeypatch.setattr(selection, "MIN_COPIED", SMALL["MIN_COPIED"])
    if request.param == "torch":  # as on an accelerator
        monkeypatch.setattr(arrays, "module", lambda _: torch)
        monkeypatch.setattr(selection, "module", lambda _: torch)
        monkeypatch.setattr(arrays, "MAX_CHUNK", SMALL["CPU_CHUNK"])


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def of(values: list[float], n: int, seed: int = 0) -> Tensor:
    """n draws from a few values."""
    return torch.tensor(values)[torch.randint(len(values), (n,), generator=torch.Generator().manual_seed(seed))]


TINY = float(np.float32(1e-45))  # the smallest denormal
CASES: dict[str, dict[str, Tensor]] = {
    "normal": {"b": normal(0, 40, 30), "a": normal(1, 17, 20), "c": normal(2, 5)},
    "all ties": {"a": torch.full((300,), 0.5), "b": torch.full((200,), 0.5)},
    "all zero": {"a": torch.zeros(300), "b": torch.zeros(200)},
    "both zeros": {"a": of([0.0, -0.0], 300), "b": of([-0.0, 0.0, 1.0], 200)},
    "infinities": {"a": of([math.inf, -math.inf, 1.0], 300), "b": of([math.inf, -math.inf, -1.0, 3e38, -3e38], 200)},
    "only infinite": {"a": torch.full((90,), -math.inf), "b": torch.full((90,), math.inf)},
    "denormals": {"a": of([TINY, 2 * TINY, 3 * TINY, -TINY, 0.0, -0.0, 1e-38], 500)},
    "two values": {"a": of([1.0, float(np.nextafter(np.float32(1), np.float32(2)))], 400)},
    "a third is zero": {"a": torch.where(normal(5, 600) > 0.4, 0.0, normal(6, 600))},
    "narrow": {"a": 1 + normal(7, 700) * 1e-6},
    "one value": {"a": torch.tensor([3.0])},
    "sorted": {"a": torch.arange(500.0), "b": -torch.arange(300.0)},
}


@pytest.mark.parametrize(("world_size", "case"), thinned(product(WORLDS, CASES), 5))
def test_equals_a_gathered_stable_sort(world_size: int, case: str) -> None:
    parameters = CASES[case]
    n = sum(p.numel() for p in parameters.values())
    for k in sorted({0, 1, n // 10, n // 3, n // 2, n - n // 10, n - 1, n} & set(range(n + 1))):
        found = select_on(world_size, parameters, lambda segments, comm, k=k: keep_top(segments, k, comm), seed=k)
        assert_same(found, oracle(parameters, k))


@settings(max_examples=60)
@given(data=st.data())
def test_any_scores_any_cut(data: st.DataObject) -> None:
    few = data.draw(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=6))
    seed, n = data.draw(st.integers(0, 10**6)), data.draw(st.integers(1, 400))
    scores = of(few, n, seed) if data.draw(st.booleans()) else normal(seed, n)
    split = data.draw(st.integers(0, n - 1))
    parameters = {"x.1": scores[split:].clone(), "x.0": scores[:split].clone()} if split else {"x": scores}
    k, world = data.draw(st.integers(0, n)), data.draw(st.sampled_from(WORLDS))
    empty = [0] if world > 1 and data.draw(st.booleans()) else []
    found = select_on(world, parameters, lambda r, c: keep_top(r, k, c), seed, empty=empty, pieces=12)
    assert_same(found, oracle(parameters, k))


def test_shards_of_very_different_sizes_and_a_rank_with_nothing() -> None:
    scores = normal(3, 2000)
    keep = torch.zeros(2000, dtype=torch.uint8)
    edges = [0, 1, 1990, 1990, 2000]  # 1, 1989, 0 and 10 elements
    segments = [
        [ScoredSegment("w", (2000,), a, scores[a:b], keep[a:b])] for a, b in zip(edges[:-1], edges[1:], strict=True)
    ] + [[]]
    for k in (0, 700, 1999, 2000):
        results, _ = run_ranks(5, lambda comm, k=k: keep_top(segments[comm.rank], k, comm))
        assert results == [None] * 5
        assert_same({"w": keep.numpy()}, oracle({"w": scores}, k))


@pytest.mark.parametrize("bracket", [(5.0, 9.0), (-9.0, -5.0), (0.0, 0.0), (-math.inf, math.inf), (1.0, -1.0)])
def test_a_missed_bracket_costs_only_time(monkeypatch: pytest.MonkeyPatch, bracket: tuple[float, float]) -> None:
    monkeypatch.setattr(
        selection, "find_brackets", lambda segments, groups, *_: [bracket] * (max(groups, default=0) + 1)
    )
    parameters = {"a": normal(0, 600), "b": normal(1, 300)}
    for world_size in (1, 2):
        for k in (0, 1, 450, 900):
            found = select_on(world_size, parameters, lambda r, c, k=k: keep_top(r, k, c), pieces=20)
            assert_same(found, oracle(parameters, k))


@pytest.mark.parametrize("world_size", WORLDS)
def test_per_matrix(world_size: int) -> None:
    parameters = {f"layer.{i}": normal(i, 30 + i, 7) for i in range(12)} | {
        "zero": torch.zeros(50),
        "inf": of([math.inf, 0], 40),
    }
    num_keep = {name: (i * 13) % (p.numel() + 1) for i, (name, p) in enumerate(parameters.items())}
    found = select_on(world_size, parameters, lambda r, c: keep_top_per_group(r, num_keep, str, c))
    for name, scores in parameters.items():
        assert_same({name: found[name]}, oracle({name: scores}, num_keep[name]))


def test_collectives_do_not_grow_with_the_number_of_matrices() -> None:
    calls = []
    for num in (1, 40):
        parameters = {f"layer.{i}": normal(i, 500) for i in range(num)}
        keep = {name: torch.zeros(500, dtype=torch.uint8) for name in parameters}
        segments = cut(parameters, keep, 2, np.random.default_rng(0))
        budgets = dict.fromkeys(parameters, 250)

        def work(comm: Comm, segments: list[list[ScoredSegment]] = segments, budgets: dict[str, int] = budgets) -> None:
            keep_top_per_group(segments[comm.rank], budgets, str, comm)

        calls.append(run_ranks(2, work)[1])
    assert calls[1] <= calls[0] + 1 <= 10  # the tie table is exchanged only if a tie is split


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("k", [0, 50, 400])
def test_nan_is_an_error_on_every_rank_that_names_the_parameter(world_size: int, k: int) -> None:
    parameters = {"good": normal(0, 300), "bad.weight": normal(1, 100)}
    parameters["bad.weight"][61] = math.nan
    with pytest.raises(ValueError, match=r"bad\.weight"):
        select_on(world_size, parameters, lambda r, c: keep_top(r, k, c))
    with pytest.raises(ValueError, match=r"bad\.weight"):
        select_on(world_size, parameters, lambda r, c: keep_above(r, 0.0, c))


@pytest.mark.parametrize("k", [-1, 11])
def test_a_number_to_keep_that_does_not_exist_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match="from 0 to 10"):
        select_on(2, {"w": normal(0, 10)}, lambda r, c: keep_top(r, k, c))


def test_a_missed_target_says_by_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    write: Any = selection._write
    monkeypatch.setattr(selection, "_write", lambda *args: write(*args) - 3)
    segments = [ScoredSegment("w", (100,), 0, normal(0, 100), torch.zeros(100, dtype=torch.uint8))]
    with pytest.raises(TargetMissed, match=r"\(-3\)"):
        keep_top(segments, 40, LOCAL)


def test_threshold_is_strict() -> None:
    scores = torch.tensor([0.0, -0.0, 1.0, math.inf, -math.inf, TINY])
    found = select_on(2, {"w": scores}, lambda r, c: keep_above(r, 0.0, c))
    assert found["w"].tolist() == [0, 0, 1, 1, 0, 1]


@pytest.mark.parametrize("scope", [Global(), Matrix()])
def test_units_reach_the_target(scope: Scope) -> None:
    parameters = {"a": normal(0, 15, 3), "b": normal(1, 25, 2)}
    found = select_on(3, parameters, lambda r, c: select_units(r, 0.5, scope, c))
    removed = [p.numel() - int(found[n].sum()) for n, p in parameters.items()]
    assert sum(removed) == sum(scope.pruned({"a": 45, "b": 50}, 0.5).values()) == 48
    if scope == Matrix():
        assert removed == [23, 25]  # 22.5 is rounded up


def test_unknown_scope_is_refused() -> None:
    with pytest.raises(ValueError, match="no scope called 'layer': allowed are global, matrix, row"):
        scopes.build("layer")


def test_parameters_held_twice_or_not_at_all_are_noticed() -> None:
    whole = ScoredSegment("w", (10,), 0, normal(0, 10), torch.zeros(10, dtype=torch.uint8))
    for segments in ([whole, whole], [ScoredSegment("w", (10,), 0, whole.scores[:5], whole.keep[:5])]):
        with pytest.raises(AssertionError, match="w: "):
            select_units(segments, 0.5, Global(), LOCAL)
