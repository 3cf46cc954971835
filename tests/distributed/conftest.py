from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed import runs


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of a parity run that nobody disturbs."""
    folder: Path = tmp_path_factory.mktemp("undisturbed")
    return runs.reference(folder / "run")
