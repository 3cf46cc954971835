"""Shared by all tests: `pat` is imported from this checkout, also in the processes that tests start."""

from __future__ import annotations

import copy
import gc
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

gc.disable()  # until all tests are collected: what they import stays, and to look through it takes a quarter longer

pytest_plugins = ["tests.outcomes", "tests.workers"]

# The same examples everywhere, and no clock: a failure is a change's own.
settings.register_profile("pat", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pat")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """What there is now is never looked through again."""
    gc.freeze()
    gc.enable()


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


@pytest.fixture(scope="session", autouse=True)
def read_once() -> Iterator[None]:
    """Hydra reads some thirty files of YAML for every config, and registers what is registered already: half as much
    again as all the rest."""
    import yaml
    from hydra.core.config_store import ConfigStore

    contents: dict[tuple[Any, str], Any] = {}
    plain_load, plain_store, stored = yaml.load, ConfigStore.store, {}

    def load(stream: Any, Loader: Any) -> Any:
        text = stream.read() if hasattr(stream, "read") else stream
        key = (text, Loader.__name__)
        if key not in contents:
            if text is not stream:
                stream.seek(0)  # an error names the file
            contents[key] = plain_load(stream, Loader)
        return copy.deepcopy(contents[key])

    def store(self: ConfigStore, name: str, node: Any, group: str | None = None, **others: Any) -> None:
        there = self.repo if group is None else self.repo.get(group, {})
        if others or f"{name}.yaml" not in there or stored.get((group, name)) != node:
            plain_store(self, name, node, group, **others)
            stored[group, name] = copy.copy(node)

    with mock.patch.object(yaml, "load", load), mock.patch.object(ConfigStore, "store", store):
        yield


def pytest_collection_finish() -> None:
    """What is imported now stays: the collector of garbage need not look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout."""
    return ROOT
