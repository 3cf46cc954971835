"""The budget of measured time: exact on tables that are lines, and what is no table is one sentence."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pat.models import families
from pat.models.anatomy import Anatomy
from pat.pruning import registry
from pat.pruning.budgets import latency
from pat.pruning.structures import costs
from tests import models as small

BASE, ATTENTION, MLP = 4e-3, (2e-4, 5e-4), (1e-4, 1e-5)  # seconds: at all; fixed and per unit of a layer


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    return families.anatomy(small.model("llama"))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write(**changed: Any) -> str:
        lines = {"kv_groups": (ATTENTION, [1, 2, 3, 4]), "ffn": (MLP, [16, 64, 128])}
        points = {
            kind: [{"units": 0, "seconds": 0.0}, *({"units": n, "seconds": fixed + slope * n} for n in units)]
            for kind, ((fixed, slope), units) in lines.items()
        }
        content = {"format": 1, "model_type": "llama", "base_seconds": BASE, **points, **changed}
        (tmp_path / "table.json").write_text(json.dumps(content))
        return str(tmp_path / "table.json")

    return write


def seconds(groups: int, neurons: int, layers: int) -> float:
    return BASE + layers * (ATTENTION[0] + ATTENTION[1] * groups + MLP[0] + MLP[1] * neurons)


@pytest.mark.parametrize("sparsity", [0.1, 0.3, 0.5])
def test_the_model_that_is_left_takes_what_the_table_says(
    anatomy: Anatomy, write: Callable[..., str], sparsity: float
) -> None:
    """Would catch: a wrong line, layer or base; a shape that could be wider within the time."""
    budget: Any = registry.build(
        "budget", {"name": "latency", "sparsity": sparsity, "table": write(), "multiple_of": 8}
    )
    sites = small.sites(anatomy, "ffn", "kv_groups", "layers")
    generator = torch.Generator().manual_seed(0)
    choice = budget.choose(anatomy, sites, {s.name: torch.rand(s.num_units, generator=generator) for s in sites})
    (groups,), (neurons,) = set(choice.counts["kv_groups"]), set(choice.counts["ffn"])
    layers = sum(choice.counts["layers"])
    limit = (1 - sparsity) * seconds(4, 128, 3)
    assert choice.before == pytest.approx(seconds(4, 128, 3) * 1e12)
    assert choice.after == pytest.approx(seconds(groups, neurons, layers) * 1e12) and choice.after <= limit * 1e12
    for wider in ((groups + 1, neurons, layers), (groups, neurons + 8, layers), (groups, neurons, layers + 1)):
        if wider[0] <= 4 and wider[1] <= 128 and wider[2] <= 3:
            assert seconds(*wider) > limit


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"format": 2}, "budget.table"),
        ({"model_type": "bert"}, "is of a bert, and the model is a llama"),
        ({"model": {"hidden_size": 64, "num_attention_heads": 8}}, "with hidden_size=64, and this one has 48"),
        ({"model": {"hidden_size": 48, "num_attention_heads": 4}}, "with num_attention_heads=4, and this one has 8"),
        ({"base_seconds": None}, "has no base_seconds"),
        ({"ffn": [{"units": 0, "seconds": 0}]}, "has no times of ffn"),
        ({"ffn": None}, "has no times of ffn"),
        ({"ffn": [{"units": 64, "seconds": 2e-3}, {"units": 128, "seconds": 1e-3}]}, "fewer ffn are not faster"),
        ({"ffn": [{"units": 64, "seconds": 1e-3}, {"units": 256, "seconds": 2e-3}]}, "is of a model with 256 ffn"),
    ],
)
def test_what_is_no_table_of_this_model(
    anatomy: Anatomy, write: Callable[..., str], changed: dict[str, Any], said: str
) -> None:
    budget: Any = registry.build("budget", {"name": "latency", "sparsity": 0.5, "table": write(**changed)})
    with pytest.raises(ValueError, match=said):
        budget.cost(anatomy)


def test_a_table_in_the_config_counts_like_its_file(anatomy: Anatomy, write: Callable[..., str]) -> None:
    file = write()
    found = []
    for table in (file, json.loads(Path(file).read_text())):
        budget: Any = registry.build("budget", {"name": "latency", "sparsity": 0.5, "table": table})
        found.append(budget.cost(anatomy))
    assert found[0] == found[1]
    budget = registry.build("budget", {"name": "latency", "sparsity": 0.5, "table": {"lineage": {}}})
    with pytest.raises(ValueError, match="budget.table in the config is not a latency table"):
        budget.cost(anatomy)


def test_no_table(anatomy: Anatomy, tmp_path: Path) -> None:
    budget: Any = registry.build("budget", {"name": "latency", "sparsity": 0.5, "table": str(tmp_path / "none")})
    with pytest.raises(ValueError, match="cannot be read: make it with `pat profile"):
        budget.cost(anatomy)


def test_a_model_with_one_kv_head_has_a_table(write: Callable[..., str]) -> None:
    """There are no fewer KV heads to measure: what attention takes is what its one takes."""
    one = families.anatomy(small.model("llama", num_key_value_heads=1))
    points = [{"units": 0, "seconds": 0.0}, {"units": 1, "seconds": 7e-4}]
    budget: Any = registry.build("budget", {"name": "latency", "sparsity": 0.5, "table": write(kv_groups=points)})
    cost = budget.cost(one)
    assert cost.total(costs.dense_widths(one)) == pytest.approx(seconds(1, 128, 3) * 1e12)
    without = dataclasses.replace(costs.dense_widths(one), sublayers=((0, 1),) * 3)
    assert cost.total(without) == pytest.approx((BASE + 3 * (MLP[0] + MLP[1] * 128)) * 1e12)


def test_a_line_that_would_begin_below_zero_is_the_best_that_begins_at_zero() -> None:
    """Times that grow faster than the units, as beyond a cache. By numpy's least squares through the origin."""
    units, seconds = [256, 512, 1024, 2048], [0.20e-3, 0.45e-3, 1.05e-3, 2.4e-3]
    points = [{"units": n, "seconds": t} for n, t in zip(units, seconds, strict=True)]
    most, fixed, slope = latency._line("table.json", points, "ffn")
    best = np.linalg.lstsq(np.array(units, float)[:, None], np.array(seconds), rcond=None)[0][0]
    assert (most, fixed) == (2048, 0) and slope == pytest.approx(best * latency.PICO, rel=1e-6)
