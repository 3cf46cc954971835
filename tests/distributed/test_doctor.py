"""`pat doctor`, once whole: real ranks, on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def test_all_is_well_here(tmp_path: Path) -> None:
    """Catches a check that cannot end well: the same promises are tested elsewhere, so here they hold."""
    file, runs = tmp_path / "doctor.json", tmp_path / "runs"
    command = [sys.executable, "-m", "pat.cli", "doctor", "--device", "cpu", "--json", str(file), "--dir", str(runs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=os.environ | {"COLUMNS": "80"})
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())
    states = {finding["check"]: finding["state"] for finding in found["findings"]}
    for check in ("ranks", "reductions", "ZeRO 1, 2, 3", "resume", "backend", "shared memory", "file locks"):
        assert states[check] == "well", found
    figures = {finding["check"]: finding["figures"] for finding in found["findings"]}
    assert figures["resume"] == figures["ZeRO 1, 2, 3"]["ZeRO 2"] and figures["reductions"]["different_bits"] == 1
    assert figures["saving"]["bytes_per_s"] > 0
    lines = done.stdout.splitlines()
    assert len(lines) == len(states) + 1, "a line each and the verdict; what ranks print is not here"
    assert lines[-1].startswith("All is well with 2 ranks on cpu") and "Not run on a GPU" in lines[-1]
    assert not list(runs.iterdir())
