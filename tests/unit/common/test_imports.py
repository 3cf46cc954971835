"""Imports without the collector, which is at work again after them."""

from __future__ import annotations

import gc

import pytest

from pat.common.imports import no_collector


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_as_before(enabled: bool) -> None:
    """Also after an import that fails, and inside another."""
    try:
        (gc.enable if enabled else gc.disable)()
        with no_collector(), no_collector():
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
        with pytest.raises(ModuleNotFoundError), no_collector():
            import no_such_module  # noqa: F401  # pyright: ignore[reportMissingImports]
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
