"""Slow ranks and stalled runs are noticed, and nothing else is."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pat.training.stragglers import WINDOWS, Pace, SlowRanks


class Sleepy(nn.Linear):
    """Takes 20 ms."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        return super().forward(input)


def test_only_a_watched_training_forward_of_leaf_modules_counts() -> None:
    model = nn.Sequential(Sleepy(4, 4), nn.Sequential(Sleepy(4, 4), nn.ReLU()))
    model.register_forward_hook(lambda *_: time.sleep(1.0))  # a wait around the modules, as a gather is
    pace, x = Pace(model), torch.ones(1, 4)
    assert len(pace.leaves) == 2
    model(x)
    assert pace.stop() == 0.0, "nobody watched"
    pace.start()
    model(x)
    model.eval()(x)
    assert 0.04 <= pace.stop() < 1.0
    model.train()(x)
    assert pace.stop() == 0.0, "the hooks are gone"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pace.leaves)


def test_a_forward_that_checkpointing_breaks_off_is_left_out() -> None:
    """Recomputation stops inside a module, at the last tensor that is needed: its forward has no end."""
    model = nn.Sequential(Sleepy(4, 4), Sleepy(4, 4))
    pace = Pace(model)
    pace.start()
    y = checkpoint(model, torch.ones(1, 4, requires_grad=True), use_reentrant=False)
    assert isinstance(y, torch.Tensor)
    y.sum().backward()
    assert 2 <= len(pace.pairs) <= 4, "two forwards, and of the second ones those that ended"
    assert pace.stop() >= 0.04
    pace.start()
    assert pace.stop() == 0.0


def test_a_rank_is_named_once_and_only_if_it_stays_slow() -> None:
    slow = SlowRanks(["a", "b", "c", "d"])
    usual, bad = [1.0, 1.1, 0.9, 1.0], [1.0, 1.1, 2.0, 1.0]
    for seconds in [bad] * (WINDOWS - 1) + [usual] + [bad] * (WINDOWS - 1):
        assert slow.seen(seconds) == [], "chance"
    (said,) = slow.seen(bad)
    assert said.startswith("rank 2 on c is slow") and "for 2 s, 1.9 times the median" in said
    assert [slow.seen(bad) for _ in range(WINDOWS)] == [[]] * WINDOWS
    assert SlowRanks(["a"]).seen([9.0]) == [] == SlowRanks(["a", "b"]).seen([0.0, 0.0])


@pytest.mark.parametrize("hosts", [["a", "b"]])
def test_of_two_ranks_the_slower_can_be_named(hosts: list[str]) -> None:
    """The median of two is their mean: 3.1 times the other is 1.51 times the mean."""
    slow = SlowRanks(hosts)
    assert [len(slow.seen([1.0, 3.1])) for _ in range(WINDOWS)] == [0] * (WINDOWS - 1) + [1]
