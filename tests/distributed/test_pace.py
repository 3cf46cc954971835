"""A slow rank is named by its own compute, also where every rank's clock shows the same."""

from __future__ import annotations

import pytest

from pat.run.directory import HOST
from tests.distributed.pace_checks import PAUSE_S
from tests.distributed.ranks import run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def test_the_slow_rank_is_named() -> None:
    found = run_ranks("tests.distributed.pace_checks", 2)
    for stage in ("1", "3"):
        for line in found[stage]["lines"]:
            fast, slow = line["train/forward_seconds_by_rank"]
            assert slow > 14 * PAUSE_S > 2 * fast, "14 linear maps"
            assert line["train/slowest_rank"] == 1 and line["train/slowest_rank_forward_seconds"] == slow
            assert line["train/peak_memory_bytes"] == max(line["train/peak_memory_bytes_by_rank"]) > 1 << 20
            assert line["train/tokens_per_s_per_rank"] == pytest.approx(line["train/tokens_per_s"] / 2)
        (said,) = found[stage]["warnings"]
        assert said.startswith(f"rank 1 on {HOST} is slow")
    fast, slow = found["3"]["walls"]
    assert fast > 0.7 * slow, "at ZeRO 3 the fast rank waits in its forward: the clock would not tell them apart"
    assert found["nobody"]["warnings"] == []
