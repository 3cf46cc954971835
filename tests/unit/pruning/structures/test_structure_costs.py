"""What a unit costs, by hand, and what gates cost in expectation, by brute force."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from pat.models import families
from pat.models.anatomy import Anatomy
from pat.pruning import registry
from pat.pruning.budgets import StructureBudget
from pat.pruning.structures import costs
from pat.pruning.structures.sites import Site
from tests import models as small

OPTIONS = {"flops": {"seq_len": 9}, "memory": {"context": 32, "batch": 3}}
FRACTIONS: dict[str, dict[str, Any]] = {
    name: OPTIONS.get(name, {})
    for name, cls in registry.classes("budget").items()
    if issubclass(cls, StructureBudget) and name != "latency"  # its costs are in a file: test_latency_budget.py
}


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    return families.anatomy(small.model("llama"))


@pytest.mark.parametrize("name", FRACTIONS)
def test_expectation_is_the_mean_over_all_gates(name: str) -> None:
    """Brute force: every combination of open and closed, weighted by its probability; the gradient by differences."""
    anatomy = families.anatomy(small.model("llama", num_hidden_layers=2, num_key_value_heads=2))
    sites = small.sites(anatomy, "kv_groups", "attention_layers", "layers")
    units = [(site.name, u) for site in sites for u in range(site.num_units)]
    p = torch.rand(len(units), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    chosen = registry.build("budget", {"name": name, "sparsity": 0.5, **FRACTIONS[name]})
    cost = chosen.cost(anatomy)
    mean = 0.0
    for flags in itertools.product([False, True], repeat=len(units)):
        z = torch.tensor(flags)
        probability = float(torch.where(z, p, 1 - p).prod())
        mean += probability * cost.total(costs.widths(anatomy, sites, split(sites, z)))
    expected = 1 - mean / cost.total(costs.dense_widths(anatomy))
    probabilities = p.float().requires_grad_()
    got = chosen.expected_sparsity(anatomy, sites, split(sites, probabilities))
    assert got.shape == (1,) and got.dtype == torch.float32
    assert got.item() == pytest.approx(expected, abs=1e-6)
    got.sum().backward()
    assert probabilities.grad is not None
    for i in range(len(units)):  # multilinear: the derivative is the difference of open and closed
        ends = []
        for value in (0.0, 1.0):
            q = p.clone()
            q[i] = value
            ends.append(chosen.expected_sparsity(anatomy, sites, split(sites, q)).item())
        assert probabilities.grad[i].item() == pytest.approx(ends[1] - ends[0], abs=1e-6)


def split(sites: list[Site], values: torch.Tensor) -> dict[str, torch.Tensor]:
    parts = values.split([site.num_units for site in sites])
    return {site.name: part for site, part in zip(sites, parts, strict=True)}


def test_per_unit_costs(anatomy: Anatomy) -> None:
    """By hand: hidden 48, head dimension 6, 2 heads a group, 128 neurons, s = 9."""
    dense = costs.dense_widths(anatomy)
    ffn, group, layer = (small.sites(anatomy, name)[0] for name in ("ffn", "kv_groups", "layers"))
    attention, mlp = small.sites(anatomy, "attention_layers")[0], small.sites(anatomy, "mlp_layers")[0]
    parameters, flops = costs.parameters(anatomy), costs.flops(anatomy, 9)
    assert parameters.per_unit(ffn, dense) == 3 * 48
    assert parameters.per_unit(group, dense) == 48 * 6 * (2 + 1 + 1 + 2)
    assert parameters.per_unit(mlp, dense) == 128 * 3 * 48 + 48
    assert parameters.per_unit(attention, dense) == 4 * 48 * 36 + 48
    assert parameters.per_unit(layer, dense) == 128 * 3 * 48 + 4 * 48 * 36 + 2 * 48
    assert flops.per_unit(ffn, dense) == 9 * 2 * 3 * 48
    assert flops.per_unit(group, dense) == 9 * (2 * 48 * 36 + 4 * 9 * 12)
    assert costs.cache(anatomy, 100, 3, 2).per_unit(group, dense) == 2 * 6 * 100 * 3 * 2


def test_an_encoder_has_no_cache_and_a_window_bounds_it() -> None:
    encoder = families.anatomy(small.model("bert"))
    assert costs.cache(encoder, 100, 1, 2).total(costs.dense_widths(encoder)) == 0
    sliding = families.anatomy(small.model("mistral", sliding_window=16))
    assert costs.cache(sliding, 100, 1, 2).total(costs.dense_widths(sliding)) == 3 * 4 * 2 * 6 * 16 * 2
