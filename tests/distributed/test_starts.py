"""A run is the same whoever starts its ranks: `pat train` itself, torchrun, srun or deepspeed."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pat import cli
from pat.config import compose
from pat.launch.environment import free_port
from pat.launch.process import rank_records
from pat.run import directory
from pat.training import preflight
from tests.distributed.conftest import once

pytestmark = [pytest.mark.distributed, pytest.mark.real_processes]

SHORT = [
    "recipe=parity",
    "logger=none",
    "train.num_steps=3",
    "pruners.weights.schedule.start=0",
    "pruners.weights.schedule.end=1",
    "pruners.weights.schedule.hard_from=1",
    "pruners.weights.schedule.select_every=1",
]
PAT = [sys.executable, "-m", "pat.cli", "train", *SHORT]
BIN = Path(sys.executable).parent


def start(command: list[str], run_dir: Path, **environ: str) -> subprocess.Popen[str]:
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"} | environ
    command = [*command, f"run.dir={run_dir}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def end(process: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = process.communicate(timeout=900)
    assert process.returncode == code, output
    return output


def result(run_dir: Path) -> dict[str, object]:
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (directory.read_exit(run_dir) or {})["code"] == 0
    return {key: summary[key] for key in ("step", "phase", "world_size", "mask_sha256", "weights_sha256")}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    def make(run_dir: Path) -> None:
        assert "step 3/3  hard  sparsity 0.800" in end(start(PAT, run_dir))

    return once(tmp_path_factory, "plain", make)


def srun(run_dir: Path, job: int, *overrides: str, **environ: str) -> list[subprocess.Popen[str]]:
    slurm = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": str(job)}
    slurm["SLURM_STEP_NODELIST"] = "localhost"
    return [
        start([*PAT, *overrides], run_dir, **slurm, **environ, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank))
        for rank in (0, 1)
    ]


@pytest.mark.slow
def test_srun(plain, tmp_path):
    tasks = srun(tmp_path / "run", os.getpid())
    assert [end(task) for task in tasks][1] == "", "rank 1 speaks in its log"
    assert result(tmp_path / "run") == result(plain)


@pytest.mark.slow
def test_a_second_start_leaves_the_first_alone(plain, tmp_path):
    """Catches ranks that write their records over those of a run that holds the directory: its supervisor would end it
    for their refusal."""
    run_dir = tmp_path / "run"
    first = start(PAT, run_dir)
    deadline = time.monotonic() + 240
    while len(records := rank_records(run_dir)) < 2:
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.1)
    for record in records:
        record.process.send(signal.SIGSTOP)
    tasks = srun(run_dir, os.getpid())
    assert "is in use by process" in end(tasks[0], directory.ExitCode.BAD_INPUT)
    tasks[1].kill()  # as srun does; it waits for rank 0
    tasks[1].wait()
    assert rank_records(run_dir) == records
    for record in records:
        record.process.send(signal.SIGCONT)
    end(first)
    assert result(run_dir) == result(plain)


@pytest.mark.slow
def test_ranks_wait_for_a_tokeniser_before_they_meet(tmp_path):
    """Catches ranks that wait for each other's tokeniser in a collective, whose timeout ends the run."""
    config: list[Any] = []
    cache = [f"data.cache_dir={tmp_path / 'cache'}", "data.max_length=48"]
    compose.compose([*SHORT, *cache], lambda found: config.append(found) or 0)
    entry = Path(preflight.fitting_data(config[0]).info["cache"])
    (entry / "info.json").unlink()  # not whole: as if it were being built
    run_dir, port = tmp_path / "run", free_port()
    with open(entry.with_suffix(".lock")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process tokenises
        tasks = srun(run_dir, os.getpid(), *cache, MASTER_PORT=str(port))
        logs, deadline = [directory.RunDir(run_dir).log(rank) for rank in (0, 1)], time.monotonic() + 240
        while not all(log.exists() and "another process tokenises this data" in log.read_text() for log in logs):
            assert time.monotonic() < deadline and all(task.poll() is None for task in tasks)
            time.sleep(0.1)
        with socket.socket() as probe:
            assert probe.connect_ex(("localhost", port)), "rank 0 already waits for the others"
    for task in tasks:
        end(task)
    assert (entry / "info.json").exists() and result(run_dir)["step"] == 3
    assert len(list((tmp_path / "cache" / "data").glob("*/"))) == 1, "both read the one entry"


@pytest.mark.slow
def test_torchrun(plain, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", *PAT[1:]]
    end(start(command, tmp_path / "run"))
    assert result(tmp_path / "run") == result(plain)


@pytest.mark.slow
def test_deepspeed(plain, tmp_path):
    end(start([str(BIN / "deepspeed"), "--num_gpus", "2", "--module", *PAT[2:]], tmp_path / "run"))
    assert result(tmp_path / "run") == result(plain)


@pytest.mark.slow
def test_a_run_of_another_config_is_refused_by_every_rank(plain, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(plain, copy)
    before = (copy / "config.yaml").read_text()
    output = end(start([*PAT, "seed=1"], copy), directory.ExitCode.BAD_INPUT)
    assert output.count("\n") == 1 and "seed was 0, now 1" in output
    assert (copy / "config.yaml").read_text() == before and result(copy)["step"] == 3


def test_local_rank_of_the_launcher_is_ignored():
    given = ["--local_rank=0", "train", "--local-rank", "1", "recipe=x", "--local_rank=3"]
    assert cli._without_local_rank(given) == ["train", "recipe=x"]
