"""Two processes that talk over gloo choose exactly what one process chooses."""

from __future__ import annotations

import pytest

from pat.common.comm import LOCAL
from tests.distributed.ranks import run_ranks
from tests.distributed.selection_checks import SELECTIONS, flags_of


@pytest.mark.distributed
def test_two_gloo_ranks_equal_one_process() -> None:
    found = run_ranks("tests.distributed.selection_checks", 2)
    for name, select in SELECTIONS.items():
        assert found[name] == flags_of(select, LOCAL)[0], name
        assert all("Scores of b" in error for error in found["nan"][name]) and len(found["nan"][name]) == 2
