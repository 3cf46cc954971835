"""Shared by all tests: `pat` is imported from this checkout, also in the processes that tests start."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

pytest_plugins = ["tests.outcomes", "tests.workers"]

# The same examples everywhere, and no clock: a failure is a change's own.
settings.register_profile("pat", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pat")


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    """Tests share the machine with the ranks that some of them start."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def composed_once() -> Iterator[None]:
    """Hydra composes every config twice, the first time only to see whether it sets hydra.mode. Ours never does, so
    here only the arguments are asked: a third less time for hundreds of tests."""
    from hydra._internal.hydra import Hydra

    plain = Hydra.get_mode

    def get_mode(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        return plain(self, config_name, overrides) if any("hydra" in each for each in overrides) else None

    with mock.patch.object(Hydra, "get_mode", get_mode):
        yield


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout."""
    return ROOT
