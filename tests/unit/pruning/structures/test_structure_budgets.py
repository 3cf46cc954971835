"""Budgets of structures against models that are really built, and against brute force."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pat.models import families
from pat.models.anatomy import Anatomy, Attention
from pat.pruning import registry
from pat.pruning.budgets import StructureBudget
from pat.pruning.structures import choose, costs
from pat.pruning.structures.sites import Site
from tests import models as small

OPTIONS = {"flops": {"seq_len": 9}, "memory": {"context": 32, "batch": 3}}
FRACTIONS: dict[str, dict[str, Any]] = {
    name: OPTIONS.get(name, {})
    for name, cls in registry.classes("budget").items()
    if issubclass(cls, StructureBudget) and name != "latency"  # its costs are in a file: test_latency_budget.py
}
SPARSITIES = [0.0, 0.05, 0.21, 0.33, 0.4]


@pytest.fixture(scope="module")
def llama() -> Any:
    return small.model("llama")


@pytest.fixture(scope="module")
def anatomy(llama: Any) -> Anatomy:
    return families.anatomy(llama)


def budget(name: str, **fields: Any) -> Any:
    return registry.build("budget", {"name": name, **FRACTIONS.get(name, {}), **fields})


def random_scores(sites: list[Site], seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {site.name: torch.randn(site.num_units, generator=generator) for site in sites}


def real_cost(anatomy: Anatomy, name: str, kv_groups: int, neurons: int, layers: int) -> int:
    """What a stock model of that shape has, in the budget's quantity, from torch alone."""
    kept = range(layers)
    config = families.shrink(anatomy.config, anatomy, kept, [[kv_groups, neurons]] * layers)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    numel = sum(p.numel() for p in model.parameters())
    if name == "parameters":
        return numel
    if name == "memory":
        return 2 * numel + 2 * 2 * layers * kv_groups * config.head_dim * 32 * 3
    linears = sum(2 * 9 * m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    return linears + layers * 4 * 9 * 9 * config.num_attention_heads * config.head_dim


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize(("structure", "most", "step"), [("ffn", 128, 64), ("kv_groups", 4, 1), ("layers", 3, 1)])
@pytest.mark.parametrize("name", FRACTIONS)
def test_one_structure_is_as_wide_as_the_limit_allows(
    anatomy: Anatomy, name: str, structure: str, most: int, step: int, sparsity: float
) -> None:
    """Would catch: a limit that is exceeded, or missed by more than one step; a wrong total."""
    sizes = {"kv_groups": 4, "neurons": 128, "layers": 3}
    key = {"ffn": "neurons"}.get(structure, structure)
    every = {n: real_cost(anatomy, name, **{**sizes, key: n}) for n in range(step, most + 1, step)}
    fits = [n for n, cost in every.items() if cost <= math.floor((1 - sparsity) * every[most] + 1e-9)]
    sites = small.sites(anatomy, structure)
    chosen = budget(name, sparsity=sparsity)
    if not fits:
        with pytest.raises(ValueError, match=f"budget.{name}: sparsity {sparsity} cannot be reached by {structure}"):
            chosen.check(anatomy, sites)
        return
    choice = chosen.choose(anatomy, sites, random_scores(sites))
    counts = choice.counts[structure]
    assert sum(counts) == max(fits) if structure == "layers" else set(counts) == {max(fits)}
    assert (choice.before, choice.after) == (every[most], every[max(fits)])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", FRACTIONS)
def test_several_structures_leave_no_room(anatomy: Anatomy, name: str, seed: int) -> None:
    """Would catch: a total that forgets the layers that are gone; a shape that could be wider."""
    sites = small.sites(anatomy, "ffn", "kv_groups", "layers")
    choice = budget(name, sparsity=0.37, multiple_of=4).choose(anatomy, sites, random_scores(sites, seed))
    layers, (neurons,), (groups,) = (
        sum(choice.counts["layers"]), set(choice.counts["ffn"]), set(choice.counts["kv_groups"]),
    )  # fmt: skip
    limit = math.floor(0.63 * real_cost(anatomy, name, 4, 128, 3) + 1e-9)
    assert choice.after == real_cost(anatomy, name, groups, neurons, layers) <= limit
    for wider in ((groups + 1, neurons, layers), (groups, neurons + 4, layers), (groups, neurons, layers + 1)):
        if wider[0] <= 4 and wider[1] <= 128 and wider[2] <= 3:
            assert real_cost(anatomy, name, *wider) > limit


@pytest.mark.parametrize("name", FRACTIONS)
def test_a_model_that_just_fits_is_left_and_one_that_just_does_not_is_narrowed(anatomy: Anatomy, name: str) -> None:
    """Limits half a parameter above and below what three KV groups cost. Would catch: a limit that is a little off."""
    sites = small.sites(anatomy, "kv_groups")
    full, three = (real_cost(anatomy, name, groups, 128, 3) for groups in (4, 3))
    for beside, groups in ((+0.5, 3), (-0.5, 2)):
        chosen = budget(name, sparsity=1.0 - (three + beside) / full)
        assert set(chosen.choose(anatomy, sites, random_scores(sites)).counts["kv_groups"]) == {groups}


def test_one_layer_stays(anatomy: Anatomy) -> None:
    """Would catch: a model without layers, which would fit any limit."""
    sites = small.sites(anatomy, "layers")
    one = real_cost(anatomy, "parameters", 4, 128, 1) / real_cost(anatomy, "parameters", 4, 128, 3)
    assert (
        sum(budget("parameters", sparsity=0.999 - one).choose(anatomy, sites, random_scores(sites)).counts["layers"])
        == 1
    )
    with pytest.raises(ValueError, match="budget.parameters"):
        budget("parameters", sparsity=1.001 - one).check(anatomy, sites)


def test_every_final_width_is_on_the_grid(anatomy: Anatomy) -> None:
    """Also of a layer that need not be narrowed: 128 neurons are no multiple of 48. On the way they may stay."""
    sites = small.sites(anatomy, "ffn")
    chosen = budget("parameters", sparsity=0.01, multiple_of=48, per_layer=True, hf_compatible=False)
    half, final = (chosen.choose(anatomy, sites, random_scores(sites), due).counts["ffn"] for due in (0.5, 1.0))
    assert 128 in half and {96} == set(final)


def test_the_limit_is_met_within_the_finest_step(anatomy: Anatomy) -> None:
    """Would catch: a layer dropped for the last few weights, when a few neurons would do."""
    sites = small.sites(anatomy, "ffn", "layers")
    for sparsity in (0.1, 0.2, 0.3, 0.4, 0.5):
        for seed in range(5):
            chosen = budget("parameters", sparsity=sparsity, multiple_of=1)
            choice = chosen.choose(anatomy, sites, random_scores(sites, seed))
            limit = math.floor((1 - sparsity) * choice.before + 1e-9)
            assert 0 <= limit - choice.after < sum(choice.counts["layers"]) * 3 * small.HIDDEN


@pytest.mark.parametrize("seed", range(3))
def test_scores_of_other_kinds_share_the_cut_evenly(anatomy: Anatomy, seed: int) -> None:
    """Would catch: a structure that goes first because its scores happen to be small numbers."""
    sites = small.sites(anatomy, "ffn", "kv_groups")
    scores = random_scores(sites, seed)
    scaled = {name: s.double() * (1e-6 if name.startswith("ffn") else 1.0) + 3 for name, s in scores.items()}
    chosen = budget("parameters", sparsity=0.45, multiple_of=1)
    choice = chosen.choose(anatomy, sites, scores, comparable=False)
    other = chosen.choose(anatomy, sites, scaled, comparable=False)
    assert all(torch.equal(choice.keep[site.name], other.keep[site.name]) for site in sites)
    assert set(choice.counts["kv_groups"]) <= {1, 2, 3}
    assert all(0.3 * 128 < n < 0.7 * 128 for n in choice.counts["ffn"])
    unlike = chosen.choose(anatomy, sites, scaled)  # as if they were one currency: neurons of score 3 are dear
    assert set(unlike.counts["kv_groups"]) == {1}
    keep = {name: counts[0] for name, counts in choice.counts.items()}
    same = budget("shape", keep=keep, multiple_of=1).choose(anatomy, sites, scores)
    assert all(torch.equal(choice.keep[site.name], same.keep[site.name]) for site in sites)


def test_a_share_is_how_many_units_of_the_structure_score_no_more(anatomy: Anatomy) -> None:
    """Times the unit's cost; of equal scores the lower index beats the others. Would catch: an order upside down, which
    a cut to one width in all layers does not show."""
    sites, cost = small.sites(anatomy, "kv_groups"), budget("parameters", sparsity=0.1).cost(anatomy)
    dense = costs.dense_widths(anatomy)
    scores = dict(
        zip((s.name for s in sites), torch.tensor([[5.0, 1, 1, 9], [2, 8, 3, 7], [4, 6, 0, 10]]), strict=True)
    )
    shares = [[7, 3, 2, 11], [4, 10, 5, 9], [6, 8, 1, 12]]
    found = choose.even(sites, scores, cost, dense)
    for site, row in zip(sites, shares, strict=True):
        expected = torch.tensor(row).double() / 12 * cost.per_unit(site, dense)
        torch.testing.assert_close(found[site.name], expected)


def test_the_best_units_stay_and_a_lower_index_beats_an_equal_score(anatomy: Anatomy) -> None:
    sites = small.sites(anatomy, "ffn")
    scores = {site.name: torch.zeros(128) for site in sites}
    scores[sites[1].name][100:] = 1.0
    choice = budget("shape", keep={"ffn": 64}).choose(anatomy, sites, scores)
    assert choice.keep[sites[0].name].nonzero().flatten().tolist() == list(range(64))
    assert choice.keep[sites[1].name].nonzero().flatten().tolist() == [*range(36), *range(100, 128)]
    layers = small.sites(anatomy, "layers")
    choice = budget("shape", keep={"layers": 2}).choose(anatomy, layers, {s.name: torch.zeros(1) for s in layers})
    assert [bool(choice.keep[site.name]) for site in layers] == [True, True, False]


@pytest.mark.parametrize("seed", range(3))
def test_per_layer_is_a_global_ranking(anatomy: Anatomy, seed: int) -> None:
    """Oracle: drop the lowest score of all sites, never the last unit of a site, until the parameters fit."""
    sites = small.sites(anatomy, "ffn")
    scores = random_scores(sites, seed)
    scores[sites[0].name] -= 5  # the whole site ranks last
    chosen = budget("parameters", sparsity=0.3, per_layer=True, multiple_of=1, hf_compatible=False)
    choice = chosen.choose(anatomy, sites, scores)
    full, unit = real_cost(anatomy, "parameters", 4, 128, 3), 3 * small.HIDDEN
    flat = np.concatenate([scores[site.name].numpy() for site in sites])
    keep = np.ones(flat.size, dtype=bool)
    for i in np.argsort(flat, kind="stable"):
        if full - (~keep).sum() * unit <= math.floor(0.7 * full + 1e-9):
            break
        if keep.reshape(3, 128)[i // 128].sum() > 1:
            keep[i] = False
    assert torch.cat([choice.keep[site.name] for site in sites]).tolist() == keep.tolist()
    assert choice.counts["ffn"][0] == 1


@pytest.mark.parametrize("per_cost", [True, False])
@pytest.mark.parametrize("beyond", [-1, 1])  # parameters that have to go beyond those of whole KV groups
def test_units_of_unlike_cost_lose_hardly_more_than_brute_force(anatomy: Anatomy, per_cost: bool, beyond: int) -> None:
    """A KV group costs as much as dozens of neurons: would catch all of those that go where the worst group saves a
    parameter more than is needed, and a group that goes for a parameter."""
    sites = small.sites(anatomy, "ffn", "kv_groups")
    cost, dense = costs.parameters(anatomy), costs.dense_widths(anatomy)
    full, unit = cost.total(dense), {site.structure: cost.per_unit(site, dense) for site in sites}
    for seed, groups in itertools.product(range(3), range(1, 6)):
        worth = {name: 1.0 + 0.1 * score.sigmoid() for name, score in random_scores(sites, seed).items()}  # per cost
        each = {
            s.name: worth[s.name].double() * unit[s.structure] * (1 if s.structure == "ffn" else 0.6) for s in sites
        }
        lost, saved = {}, {}  # by the lowest n of all sites, each of which keeps one
        for name in unit:
            low = torch.cat([each[s.name].sort().values[:-1] for s in sites if s.structure == name]).sort().values
            lost[name] = torch.cat([torch.zeros(1), low]).cumsum(0)
            saved[name] = torch.arange(len(low) + 1) * unit[name]
        sparsity = (groups * unit["kv_groups"] + beyond) / full
        fits = full - saved["ffn"][:, None] - saved["kv_groups"] <= math.floor((1 - sparsity) * full + 1e-9)
        best = float(torch.where(fits, lost["ffn"][:, None] + lost["kv_groups"], torch.inf).min())
        chosen = budget("parameters", sparsity=sparsity, per_layer=True, multiple_of=1, hf_compatible=False)
        scores = {s.name: each[s.name] / unit[s.structure] for s in sites} if per_cost else each
        keep = chosen.choose(anatomy, sites, scores, per_cost=per_cost).keep
        assert sum(float(each[site.name][~keep[site.name]].sum()) for site in sites) <= 1.01 * best, (seed, groups)


@pytest.mark.parametrize("sparsity", [0.6, 0.75])
@pytest.mark.parametrize("lowest", ["ffn", "layers", "attention_layers"])  # is removed first
@pytest.mark.parametrize("name", FRACTIONS)
def test_per_layer_leaves_no_room(anatomy: Anatomy, name: str, lowest: str, sparsity: float) -> None:
    """Would catch: units of a layer that is gone counted as savings; a site off its grid; room for one more step."""
    sites = small.sites(anatomy, "ffn", "kv_groups", "layers", "attention_layers", "mlp_layers")
    chosen = budget(name, sparsity=sparsity, per_layer=True, multiple_of=16, hf_compatible=False)
    cost = chosen.cost(anatomy)
    for seed in range(5):
        scores = {n: s.abs() for n, s in random_scores(sites, seed).items()}
        for site in sites:
            scores[site.name] *= 1e-3 if site.structure == lowest else 1.0
        choice = chosen.choose(anatomy, sites, scores)
        assert all(n % 16 == 0 and n >= 16 for n in choice.counts["ffn"])
        limit = math.floor((1 - sparsity) * choice.before + 1e-9)
        assert choice.after == cost.total(costs.widths(anatomy, sites, choice.keep)) <= limit
        for site in sites:
            closed = (~choice.keep[site.name]).nonzero().flatten().tolist()
            if closed and site.structure != "layers":
                wider = choice.keep[site.name].clone()
                wider[closed[: 16 if site.structure == "ffn" else 1]] = True
                more = cost.total(costs.widths(anatomy, sites, {**choice.keep, site.name: wider}))
                assert more > limit or more == choice.after  # equal: in a layer that is gone
        best = [s for s in sites if s.structure == "layers" and not choice.keep[s.name].all()]
        for site in sorted(best, key=lambda s: -float(scores[s.name]))[:1]:
            wider = {**choice.keep, site.name: torch.tensor([True])}
            assert cost.total(costs.widths(anatomy, sites, wider)) > limit


def test_what_is_dropped_first_costs_nothing_any_more(anatomy: Anatomy) -> None:
    """By hand: one layer goes (lowest score), then neurons of the two others until 45 % of the parameters are gone."""
    sites = small.sites(anatomy, "ffn", "layers")
    scores = {site.name: torch.rand(site.num_units, generator=torch.Generator().manual_seed(5)) for site in sites}
    layers = [site.name for site in sites if site.structure == "layers"]
    scores |= {layers[0]: torch.tensor([1e9]), layers[1]: torch.tensor([0.0]), layers[2]: torch.tensor([1e9])}
    choice = budget("parameters", sparsity=0.45, multiple_of=1).choose(anatomy, sites, scores)
    assert choice.counts["layers"] == [1, 0, 1]
    limit = math.floor(0.55 * real_cost(anatomy, "parameters", 4, 128, 3) + 1e-9)
    fits = [n for n in range(1, 129) if real_cost(anatomy, "parameters", 4, n, 2) <= limit]
    assert set(choice.counts["ffn"]) == {max(fits)}


@pytest.mark.parametrize("name", FRACTIONS)
def test_progress_goes_from_dense_to_the_target(anatomy: Anatomy, name: str) -> None:
    sites = small.sites(anatomy, "ffn", "kv_groups")
    chosen, scores = budget(name, sparsity=0.4, multiple_of=8), random_scores(sites)
    after = [chosen.choose(anatomy, sites, scores, progress) for progress in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert after[0].after == after[0].before
    for progress, choice in zip((0.0, 0.25, 0.5, 0.75, 1.0), after, strict=True):
        assert choice.after <= math.floor((1 - 0.4 * progress) * choice.before + 1e-9)


def test_the_shape_is_reached_exactly_and_in_steps(anatomy: Anatomy) -> None:
    sites = small.sites(anatomy, "ffn", "kv_groups", "layers")
    chosen = budget("shape", keep={"ffn": 32, "kv_groups": 2, "layers": 2}, multiple_of=32)
    choice = chosen.choose(anatomy, sites, random_scores(sites))
    assert (set(choice.counts["ffn"]), set(choice.counts["kv_groups"])) == ({32}, {2})
    assert sum(choice.counts["layers"]) == 2
    assert choice.after == real_cost(anatomy, "parameters", 2, 32, 2)
    assert (
        str(choice) == "ffn 32 of 128, kv_groups 2 of 4, layers 2 of 3: 22,512 of 82,512 parameters, 72.7167% removed"
    )
    half = chosen.choose(anatomy, sites, random_scores(sites), 0.5)
    assert (set(half.counts["ffn"]), set(half.counts["kv_groups"])) == ({96}, {3})  # 80 is not on the grid
    assert sum(half.counts["layers"]) == 2  # half of one layer is due, which rounds up
    assert chosen.choose(anatomy, sites, random_scores(sites), 0.0).after == choice.before
    # a constraint per site, and one for all layers
    assert chosen.target_sparsity(anatomy, sites) == [*[0.75] * 3, *[0.5] * 3, pytest.approx(1 / 3)]
    flags = {name: keep.float() for name, keep in choice.keep.items()}
    assert chosen.expected_sparsity(anatomy, sites, flags).tolist() == pytest.approx([*[0.75] * 3, *[0.5] * 3, 1 / 3])


@pytest.mark.parametrize(
    ("keep", "counts"),
    [
        ({"ffn": 0.25, "kv_groups": 0.5, "layers": 0.67}, (32, 2, 2)),
        ({"ffn": 0.375, "kv_groups": 0.625, "layers": 0.5}, (64, 3, 2)),  # half way between two: the wider one
        ({"ffn": 0.01, "kv_groups": 0.01, "layers": 0.01}, (32, 1, 1)),
    ],
)
def test_a_share_is_the_count_of_the_grid_nearest_to_it(anatomy: Anatomy, keep: Any, counts: tuple[int, ...]) -> None:
    sites = small.sites(anatomy, "ffn", "kv_groups", "layers")
    shares = budget("shape", keep=keep, multiple_of=32)
    whole = budget("shape", keep=dict(zip(keep, counts, strict=True)), multiple_of=32)
    for progress in (0.3, 1.0):
        found, expected = (each.choose(anatomy, sites, random_scores(sites), progress) for each in (shares, whole))
        assert str(found) == str(expected)
        assert all(torch.equal(found.keep[name], flags) for name, flags in expected.keep.items())
    assert shares.target_sparsity(anatomy, sites) == whole.target_sparsity(anatomy, sites)


def test_tensor_parallel_and_multiples(anatomy: Anatomy) -> None:
    """vLLM splits heads evenly, and KV heads where they divide the ranks or are divided by them."""
    attention = anatomy.layers[0].sublayers[0]
    assert isinstance(attention, Attention) and (attention.num_heads, attention.num_kv_heads) == (8, 4)
    sites = small.sites(anatomy, "ffn", "kv_groups")
    for sparsity in (0.05, 0.2, 0.3):
        choice = budget("parameters", sparsity=sparsity, tensor_parallel=4, multiple_of=6).choose(
            anatomy, sites, random_scores(sites)
        )
        assert {n % 12 for n in choice.counts["ffn"]} == {0}
        assert set(choice.counts["kv_groups"]) <= {2, 4}


def test_kv_heads_that_ranks_cannot_share_are_not_on_the_grid() -> None:
    """3 KV heads with 12 query heads: the query heads split over 4 ranks, the KV heads do not."""
    anatomy = families.anatomy(small.model("llama", hidden_size=96, num_attention_heads=16))
    sites = small.sites(anatomy, "kv_groups")
    with pytest.raises(ValueError, match="12 heads with 3 KV heads cannot be split over .*; take 2 or 4"):
        budget("shape", keep={"kv_groups": 3}, tensor_parallel=4).check(anatomy, sites)
    for count in (1, 2, 4):
        budget("shape", keep={"kv_groups": count}, tensor_parallel=4).check(anatomy, sites)


@pytest.mark.parametrize("structure", ["layers", "attention_layers"])
@pytest.mark.parametrize("how", [{"comparable": False}, {"per_cost": True}])
def test_no_more_layers_go_than_are_needed(how: dict[str, bool], structure: str) -> None:
    """Layers whose cache a window bounds cost a fraction of the others. They go by their scores, lowest first; counted
    by anything else, as their costs, more go than the limit asks for, or fewer."""
    sliding = families.anatomy(small.model("gemma3_text", num_hidden_layers=8, sliding_window=16))
    assert len({layer.sublayers[0].window for layer in sliding.layers}) == 2  # pyright: ignore
    sites = small.sites(sliding, structure)
    for seed, sparsity in itertools.product(range(6), (0.05, 0.15, 0.3)):
        chosen = budget("memory", sparsity=sparsity, context=512, batch=2, hf_compatible=structure == "layers")
        cost, scores = chosen.cost(sliding), {n: s.sigmoid() for n, s in random_scores(sites, seed).items()}
        limit = (1 - sparsity) * cost.total(costs.dense_widths(sliding))
        left = sorted(sites, key=lambda site: float(scores[site.name]))
        while cost.total(costs.widths(sliding, sites, {s.name: torch.tensor([s in left]) for s in sites})) > limit:
            left = left[1:]
        choice = chosen.choose(sliding, sites, scores, **how)
        assert {name for name, keep in choice.keep.items() if keep} == {site.name for site in left}, (seed, sparsity)
