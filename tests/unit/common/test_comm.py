"""What a reduction gives, and what it leaves as it is, on any number of ranks."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from pat.common.comm import Comm


@pytest.mark.parametrize("ranks", [1, 2])
def test_only_a_sum_in_place_changes_what_is_summed(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: figures that are summed now and again while they grow, which several ranks would count twice."""
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, op: tensor.mul_(ranks))
    comm, given = Comm(0, ranks), torch.tensor([1.0, 2.0])
    for reduce in (comm.sum, comm.max):
        assert reduce(given).tolist() == [ranks, 2 * ranks]
        reduce(given).zero_()
        assert given.tolist() == [1.0, 2.0]
    assert comm.sum_(given) is given
    assert given.tolist() == [ranks, 2 * ranks]
