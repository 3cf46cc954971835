"""A share of units is the same number, whoever asks: one exact rounding."""

from __future__ import annotations

from decimal import ROUND_FLOOR, Decimal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pat.common.rounding import part_of
from pat.models import families
from pat.pruning.budgets.shape import Shape
from pat.pruning.granularity.block import Block
from pat.pruning.granularity.weight import Weight
from pat.pruning.schedules import absolute_step
from pat.pruning.scopes.all_matrices import Global
from pat.pruning.scopes.matrix import Matrix
from pat.sensitivity.cells import grid
from tests import models as small


@pytest.mark.parametrize(
    ("units", "share", "expected"),
    [
        (30, 0.1, 3),
        (10, 0.25, 3),
        (30, 0.15, 5),
        (50, 0.29, 15),
        (0, 0.9, 0),
        (7, 0.0, 0),
        (3, 0.9, 3),
        (1000, 1e-05, 0),
        (10**9, 0.7, 7 * 10**8),
    ],
)
def test_part_of(units: int, share: float, expected: int) -> None:
    assert part_of(units, share) == expected


@given(units=st.integers(1, 5000), thousandths=st.integers(0, 999))
def test_everyone_rounds_alike(units: int, thousandths: int) -> None:
    """Against decimals: would catch any binary product, and Python's rounding of halves to even."""
    share = thousandths / 1000
    expected = int((Decimal(thousandths) / 1000 * units + Decimal("0.5")).to_integral_value(ROUND_FLOOR))
    assert part_of(units, share) == expected
    for scope in (Global(), Matrix()):
        assert list(scope.pruned({"w": units}, share).values()) == [expected]
        assert Weight().pruned_units({"w": (units, 1)}, share, scope) == expected
        assert Block(rows=2, cols=2).pruned_units({"w": (2 * units, 2)}, share, scope) == expected
    assert absolute_step("schedule.start", share, units) == min(expected, units - 1)


HALVES = [(50, 0.29), (50, 0.57), (50, 0.25), (50, 0.01), (50, 0.03), (50, 0.05)]


@pytest.mark.parametrize(("units", "share"), HALVES)
def test_structures_round_as_weights_do(units: int, share: float) -> None:
    """A shape on its way, and what sensitivity removes of each layer."""
    model = small.model("llama", intermediate_size=units + 1)
    anatomy = families.anatomy(model)
    sites = small.sites(anatomy, "ffn")
    scores = {site.name: torch.arange(float(site.num_units)) for site in sites}
    left = Shape(keep={"ffn": 1}, multiple_of=1).choose(anatomy, sites, scores, share).counts["ffn"]
    assert left == [units + 1 - part_of(units, share)] * len(sites)

    model = small.model("llama", intermediate_size=units)
    found = {cell.removed for cell in grid(model, [share], ["ffn"]).cells}
    assert found == {max(1, part_of(units, share))}
