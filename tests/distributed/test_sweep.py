"""A real sweep: a member that fails, a stop in the middle, and what `--continue` makes of both."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pat.common import files
from pat.launch import process
from pat.run.directory import ExitCode, RunDir
from tests import wandb_files
from tests.distributed import runs

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.real_processes]

# The second limit of the loss stops a run at its first logged step.
PARITY = [override for override in runs.PARITY if override != "logger=none"]  # wandb
SWEEP = [*PARITY, "logger.mode=offline", "engine.world_size=1", "train.max_loss=100,0.1"]
PATIENCE_S = 400.0


def start(out: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pat.cli", "sweep", *SWEEP, "--out", str(out), *options]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def members(out: Path) -> dict[str, dict[str, Any]]:
    found = files.read_json(out / "sweep.json")
    return {member["name"]: member for member in (found or {"members": []})["members"]}


def test_sweep(tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    sweep = start(out)
    first = out / "train.max_loss=100"
    end = time.monotonic() + PATIENCE_S
    while not any(line["step"] >= 3 for line in runs.losses(first)):
        assert sweep.poll() is None and time.monotonic() < end, "the first member does not train"
        time.sleep(0.01)
    sweep.send_signal(signal.SIGTERM)
    said, _ = sweep.communicate(timeout=PATIENCE_S)
    assert sweep.returncode == ExitCode.PREEMPTED, said
    assert runs.latest(first) == runs.losses(first)[-1]["step"] >= 3, "it saved where it stood"
    assert not any(r.process.alive for m in members(out).values() for r in process.rank_records(Path(m["dir"])))
    found = members(out)
    assert "--continue" in said
    assert [m["meaning"] for m in found.values()] == ["preempted", "not run"], "nothing was started after the signal"
    assert start(out).communicate(timeout=PATIENCE_S)[0].count("--continue runs what it lacks") == 1

    sweep = start(out, "--continue", "--x", "latency")
    said, _ = sweep.communicate(timeout=2 * PATIENCE_S)
    assert sweep.returncode == ExitCode.DIVERGED, said
    found = members(out)
    for member in found.values():
        diverges = member["varied"]["train.max_loss"] == "0.1"
        assert member["code"] == (ExitCode.DIVERGED if diverges else 0), said
        assert ("above 0.1 (train.max_loss)" in member["message"]) == diverges and member["message"] in said
        if not diverges:
            assert member["summary"] == files.read_json(RunDir(Path(member["dir"])).summary)
            assert member["summary"]["sparsity"] == pytest.approx(0.8, abs=1e-4)
            assert member["latency_ms"] > 0
    assert "resumed at step" in (out / "logs" / f"{first.name}.log").read_text()
    groups = {start["group"] for m in found.values() for start in wandb_files.read_ended(Path(m["dir"]))}
    assert groups == {"sweep"}, "side by side in wandb"
    ((title, text),) = wandb_files.read_ended(out / "train.max_loss=0.1")[0]["alerts"]
    assert title.endswith("diverged") and text in said
    points = (files.read_json(out / "sweep.json") or {})["points"]
    assert [p["best"] for p in points] == [True]

    again = start(out, "--continue")
    said, _ = again.communicate(timeout=PATIENCE_S)
    assert "1 of 2 runs are done already" in said and again.returncode == ExitCode.DIVERGED
    assert members(out)[first.name]["seconds"] == found[first.name]["seconds"], "it was not run again"
