"""`pat doctor`, once whole: real ranks, on this machine; and inside an allocation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pat.launch.environment import free_port

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


def test_in_an_allocation_of_two_nodes(tmp_path: Path) -> None:
    """As srun starts it, with a run's own recipe and kernels; what each node is asked is told once where all say the
    same."""
    file, world = tmp_path / "doctor.json", {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    options = ["--device", "cpu", "--dir", str(tmp_path / "runs"), "--json", str(file)]
    command = [sys.executable, "-m", "pat.cli", "doctor", "recipe=parity", "engine.kernels=compile", *options]
    world |= {"MASTER_PORT": str(free_port()), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | world | {"RANK": str(rank), "SLURMD_NODENAME": f"n{rank + 1}"},
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=600)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    found = json.loads(file.read_text())
    by_check = {finding["check"]: finding for finding in found["findings"]}
    for check in ("reductions", "ZeRO 1, 2, 3", "resume", "clocks", "backend", "file locks"):
        assert by_check[check]["state"] == "well", found
    assert [one["link"] for one in by_check["links"]["figures"]["links"]] == ["n1 - n2", "all ranks"]
    assert abs(by_check["clocks"]["figures"]["ahead_s"]["n2"]) < 0.05, "two processes of one machine have one clock"
    assert set(by_check["disk"]["figures"]) == {"n1", "n2"} and not said[1].strip(), "rank 0 tells it all"
    assert not list((tmp_path / "runs").iterdir())
