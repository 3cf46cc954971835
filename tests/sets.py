"""Parameters of the quick and of the slow set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from _pytest.mark.structures import ParameterSet


def slow(case: Any) -> ParameterSet:
    """A case (a tuple: of several arguments) that only the slow set runs."""
    if isinstance(case, ParameterSet):
        return pytest.param(*case.values, marks=[*case.marks, pytest.mark.slow], id=case.id)
    return pytest.param(*(case if isinstance(case, tuple) else [case]), marks=pytest.mark.slow)


def thinned(cases: Iterable[Any], every: int) -> list[Any]:
    """One case in `every` for the quick set, spread evenly, where all meet the same few lines; all for the slow set."""
    return [slow(case) if number % every else case for number, case in enumerate(cases)]
