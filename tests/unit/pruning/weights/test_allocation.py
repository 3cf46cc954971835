"""How a target is allotted to matrices: exactly, to those whose weights the loss feels least, within reach of it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from pat.common.rounding import part_of
from pat.pruning.calibration.back import Squares
from pat.pruning.weights import allocation
from pat.pruning.weights.allocation import allotted, histogram, output_weights


def made(seed: int, scales: list[float]) -> tuple[dict[str, Tensor], dict[str, Squares]]:
    """Matrices of several shapes, and what the loss feels of each in relation to the others."""
    random = torch.Generator().manual_seed(seed)
    weights, measured = {}, {}
    for place, scale in enumerate(scales):
        rows, columns = 20 + 10 * place, 30
        weights[f"m{place}"] = torch.randn(rows, columns, generator=random)
        x, g = (torch.rand(n, generator=random, dtype=torch.float64) + 0.1 for n in (columns, rows))
        measured[f"m{place}"] = Squares(x, g * scale)
    return weights, measured


def saliencies(weights: dict[str, Tensor], measured: dict[str, Squares]) -> dict[str, Tensor]:
    """LeCun's formula in fp64, without bins."""
    return {
        name: torch.einsum("oi,i,o->oi", w.double() ** 2, measured[name].inputs, measured[name].gradients)
        for name, w in weights.items()
    }


@pytest.mark.parametrize("sparsity", [0.05, 0.3, 0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("scales", [[1.0, 1.0], [1.0, 4.0, 0.3], [1e-9, 1.0, 1e9, 2.0]])
def test_exactly_the_target_within_reach_and_the_least_felt_first(scales: list[float], sparsity: float) -> None:
    weights, measured = made(1, scales)
    counts = allotted({n: histogram(w, measured[n]) for n, w in weights.items()}, sparsity)
    assert sum(counts.values()) == part_of(sum(w.numel() for w in weights.values()), sparsity)
    reach = min(allocation.REACH, (1 - sparsity) / 2, sparsity)
    sorted_ = {name: a.flatten().sort().values for name, a in saliencies(weights, measured).items()}
    free: dict[str, tuple[float, float]] = {}
    for name, count in counts.items():
        size = weights[name].numel()
        low, high = math.floor((sparsity - reach) * size), math.ceil((sparsity + reach) * size)
        assert low <= count <= high
        last = float(sorted_[name][count - 1]) if count > low else -math.inf
        first = float(sorted_[name][count]) if count < high else math.inf
        free[name] = last, first
    for (a, (last, _)), (b, (_, first)) in itertools.permutations(free.items(), 2):
        assert last <= first * 1.07, f"{a} gives up what is felt more than what {b} keeps, by more than a bin is wide"


def test_matrices_that_are_felt_alike_get_the_target_itself() -> None:
    random = torch.Generator().manual_seed(0)
    same = torch.randn(64, 64, generator=random)
    one = Squares(torch.ones(64, dtype=torch.float64), torch.ones(64, dtype=torch.float64))
    counts = allotted({name: histogram(same, one) for name in "ab"}, 0.5)
    assert counts == {"a": 2048, "b": 2048}


def test_what_is_gone_stays_gone_in_later_cuts() -> None:
    """Whatever an earlier cut has allotted, a later one takes no less of any matrix, and still meets its target."""
    for seed, scales in enumerate(([1.0, 50.0, 0.02], [1.0, 1e-4], [3.0, 1.0, 2.0, 1e6])):
        weights, measured = made(seed, scales)
        gone = dict.fromkeys(weights, 0)
        for cut, sparsity in enumerate((0.2, 0.5, 0.7, 0.8, 0.9, 0.95)):
            _, measured = made(
                seed + 10 * cut, [scale * 10.0 ** ((3 - cut) * (i % 2)) for i, scale in enumerate(scales)]
            )
            counts = allotted({n: histogram(w, measured[n]) for n, w in weights.items()}, sparsity)
            assert all(counts[name] >= gone[name] for name in weights)
            assert sum(counts.values()) == part_of(sum(w.numel() for w in weights.values()), sparsity)
            for name, matrix in weights.items():
                flat = matrix.flatten()
                flat[flat.abs().argsort()[: counts[name]]] = 0.0
            gone = counts


def test_matrices_of_few_units_give_up_no_less_either() -> None:
    """Would catch: a floor of the next cut, above what is gone of some, that other matrices' zeros make up for."""
    generator = torch.Generator().manual_seed(0)
    one = Squares(torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    for _ in range(300):
        sizes, first, second = (torch.randint(4, 60, (6,), generator=generator).tolist(), 0.38, 0.40)
        scales = (10.0 ** torch.randn(2, 6, generator=generator)).tolist()
        weights = {str(i): torch.randn(size, 1, generator=generator) for i, size in enumerate(sizes)}
        before = allotted({n: histogram(w * scales[0][int(n)], one) for n, w in weights.items()}, first)
        for name, matrix in weights.items():
            matrix[matrix[:, 0].abs().argsort()[: before[name]]] = 0.0
        after = allotted({n: histogram(w * scales[1][int(n)], one) for n, w in weights.items()}, second)
        assert all(after[name] >= before[name] for name in weights)
        assert sum(after.values()) == part_of(sum(sizes), second)


def test_a_model_that_came_with_more_zeros_than_are_asked_for_is_allotted_the_target() -> None:
    weights, measured = made(0, [1.0, 2.0, 3.0])
    for matrix in weights.values():
        matrix.flatten()[: int(0.6 * matrix.numel())] = 0.0
    counts = allotted({n: histogram(w, measured[n]) for n, w in weights.items()}, 0.5)
    assert sum(counts.values()) == part_of(sum(w.numel() for w in weights.values()), 0.5)


def test_an_outputs_weight_is_the_root_of_its_share_and_never_near_0() -> None:
    weights = output_weights(torch.tensor([1.0, 3.0, 0.0, 4.0], dtype=torch.float64))
    expected = [math.sqrt(value / 2 + allocation.FLOOR) for value in (1.0, 3.0, 0.0, 4.0)]
    torch.testing.assert_close(weights, torch.tensor(expected))
