"""What .ci/run makes of checks that fail, with stand-ins for all that it calls."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.mark.parametrize("fails", [None, "ruff", "mkdocs", "pyright", "run.sh"])
def test_a_check_that_fails_fails_all(repository: Path, tmp_path: Path, fails: str | None) -> None:
    """Would catch: waiting for the build that the set-up has begun, in place of the check beside the tests."""
    for folder in (".ci", "launch", "tests"):
        (tmp_path / folder).mkdir()
    shutil.copy2(repository / ".ci/run", tmp_path / ".ci")
    (tmp_path / "launch/setup.sh").write_text("(true) &\n")
    for tool in ("tests/run.sh", "ruff", "lint-imports", "mkdocs", "pyright"):
        (tmp_path / tool).write_text(f"#!/bin/sh\nexit {int(Path(tool).name == fails)}\n")
        (tmp_path / tool).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([tmp_path / ".ci/run"], env=environment, capture_output=True, text=True, timeout=60)
    named = [line for line in done.stdout.splitlines() if line.startswith("failed: ")]
    assert done.returncode == int(fails is not None) and bool(named) == (fails is not None)
    assert all(str(fails) in line for line in named)
