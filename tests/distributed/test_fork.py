"""A fork with a sparsity is the run that had it from the start, to the bit."""

from __future__ import annotations

import pytest

from tests.distributed.ranks import run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def test_a_fork_ends_in_the_bits_of_a_run_that_knew_from_the_start() -> None:
    """Masks by movement, whose scores gather before the first cut; learned gates, whose importance does."""
    for made in run_ranks("tests.distributed.fork_checks", 2, "weights,gates", "2", timeout_s=900).values():
        dense, forked, plain = made["dense"], made["forked"], made["plain"]
        assert dense["sparsity"] == 0.0 < plain["sparsity"] < 0.5, "less than the dense part was told"
        assert (dense["step"], made["heat"]["began"], plain["began"]) == (4, 4, 0)
        assert forked["began"] == made["heat"]["step"] == 9 and made["heat"]["sparsity"] == plain["sparsity"]
        assert [line["step"] for line in made["until"]] == [9] and made["left"] == [], "the run knows nothing of a race"
        for key in plain.keys() - {"began"}:
            assert forked[key] == plain[key], key
        assert forked["dense"] == dense["dense"] and [line for line in plain["lines"] if "dense/loss" in line]
