"""The oracle against hand-computed steps and against plain training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pat.pruning import registry
from pat.pruning.schedules import Timeline
from tests.oracle import Forward, Record, Settings, run


class Three(nn.Module):
    """Three weights; the loss is their product with given slopes, so G is these slopes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[2.0, -1.0, 0.5]]))

    def forward(self, slopes: Tensor) -> Tensor:
        return (self.weight * slopes).sum()


def timeline(name: str, num_steps: int, **fields: Any) -> Timeline:
    return registry.build("schedule", {"name": name, **fields}).resolve(num_steps)


def slope_loss(forward: Forward, batch: list[float]) -> Tensor:
    return forward(torch.tensor(batch))


def three(steps: list[list[list[float]]], line: Timeline, **settings: Any) -> list[Record]:
    """With betas 0 a step of Adam is lr * sign(G)."""
    chosen = Settings(**{"sparsity": 0.33, "lr": 0.1, "betas": (0.0, 0.0), "weight_decay": 0.5, **settings})
    return run(Three, slope_loss, steps, ["weight"], line, chosen)


def close(actual: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(actual.flatten(), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_dense_soft_hard_by_hand() -> None:
    slopes = [0.3, -0.2, 0.1]
    dense, soft, hard = three([[slopes]] * 3, timeline("one_shot", 3, start=1, hard_from=2))
    close(dense.scores["weight"], [-0.6, -0.2, -0.05])  # -W * G
    close(dense.weights["weight"], [2 * 0.95 - 0.1, -0.95 + 0.1, 0.5 * 0.95 - 0.1])
    assert soft.masks["weight"].tolist() == [[False, True, True]]
    close(soft.scores["weight"], [-0.6 - 0.54, -0.2 - 0.17, -0.05 - 0.0375])  # at the masked weight too
    close(soft.weights["weight"], [0.0, -0.85 * 0.95 + 0.1, 0.375 * 0.95 - 0.1])
    close(hard.weights["weight"], [0.0, -0.7075 * 0.95 + 0.1, 0.25625 * 0.95 - 0.1])
    assert torch.equal(hard.masks["weight"], soft.masks["weight"])


def test_a_pruned_weight_comes_back_with_its_dense_value() -> None:
    first, second = [0.3, -0.2, 0.1], [-10.0, -0.2, 0.1]
    records = three([[first], [second], [second]], timeline("one_shot", 4, start=1, hard_from=3))
    assert records[1].masks["weight"].tolist() == [[False, True, True]]
    close(records[1].scores["weight"], [-0.6 + 18.0, -0.37, -0.0875])
    assert records[2].masks["weight"].tolist() == [[True, False, True]]
    close(records[2].weights["weight"], [1.8 * 0.95 + 0.1, 0.0, 0.25625 * 0.95 - 0.1])  # 1.8 did not decay while masked


def test_accumulation_is_the_mean_and_the_clip_counts_living_weights() -> None:
    line = timeline("one_shot", 4, start=1, hard_from=3)
    micro = [[30.0, 0.0, 0.2], [30.0, 0.8, 0.4]]
    records = three([micro] * 2, line, max_norm=0.25, weight_decay=0.0)
    assert records[0].norm == pytest.approx((30**2 + 0.4**2 + 0.3**2) ** 0.5)
    assert records[1].norm == pytest.approx((30**2 + 0.4**2 + 0.3**2) ** 0.5)  # the forward of step 1 was still dense
    third = three([micro] * 3, line, max_norm=0.25, weight_decay=0.0)[2]
    assert third.norm == pytest.approx(0.5)  # the pruned weight's 30 does not count
    grown = third.scores["weight"] - records[1].scores["weight"]
    close(grown, [-0.5 * 30 * 1.9, -0.5 * 0.4 * -1.2, -0.5 * 0.3 * 0.3])


def test_equal_scores_keep_the_lower_index() -> None:
    (record,) = three([[[0.0, 0.0, 0.0]]], timeline("one_shot", 2, start=0, hard_from=1), sparsity=0.5)
    assert record.masks["weight"].tolist() == [[True, False, False]]  # 1.5 rounds up to 2 removed


def test_matrix_scope_prunes_each_matrix() -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        small, large = nn.Linear(4, 5, bias=False), nn.Linear(5, 4, bias=False)
        nn.init.uniform_(small.weight, 0.0, 0.1)
        nn.init.uniform_(large.weight, 1.0, 2.0)
        return nn.Sequential(small, large)

    def loss(forward: Forward, batch: Tensor) -> Tensor:
        return forward(batch).square().mean()

    line, names = timeline("one_shot", 2, start=0, hard_from=1), ["0.weight", "1.weight"]
    removed = {}
    for scope in ("global", "matrix"):
        settings = Settings(sparsity=0.5, criterion="magnitude", scope=scope)
        (record,) = run(model, loss, [[torch.ones(2, 4)]], names, line, settings)
        removed[scope] = [int((~record.masks[n]).sum()) for n in names]
    assert removed == {"global": [20, 0], "matrix": [10, 10]}


def test_without_pruning_it_is_plain_training() -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

    def loss(forward: Forward, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.mse_loss(forward(batch[0]), batch[1])

    torch.manual_seed(1)
    steps = [[(torch.randn(4, 6), torch.randn(4, 3)) for _ in range(2)] for _ in range(6)]
    line = timeline("linear", 6, start=2, end=3, hard_from=4)
    settings = Settings(sparsity=0.0, lr=lambda t: 0.01 / (t + 1), weight_decay=0.1, max_norm=0.5)
    records = run(model, loss, steps, ["0.weight"], line, settings)

    plain = model()
    groups = [
        {"params": [p for p in plain.parameters() if (p.dim() > 1) is d], "weight_decay": 0.1 * d}
        for d in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, foreach=False)
    for t, micro_batches in enumerate(steps):
        optimizer.zero_grad()
        for batch in micro_batches:
            (loss(plain, batch) / 2).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / (t + 1)
        optimizer.step()
        for name, param in plain.named_parameters():
            torch.testing.assert_close(records[t].weights[name], param.detach(), rtol=0.0, atol=1e-6)


def test_hard_phase_stays_zero_under_momentum() -> None:
    records = three([[[0.3, -0.2, 0.1]]] * 6, timeline("one_shot", 6, start=1, hard_from=3), betas=(0.9, 0.99))
    assert all(float(r.weights["weight"][0, 0]) == 0.0 for r in records[3:])
    with pytest.raises(ValueError, match="outside the run"):
        timeline("one_shot", 3, start=1, hard_from=3)
