"""A real Slurm on this machine, real jobs of the parity recipe in it, and what may happen to them."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pat.common import files
from pat.launch import process
from pat.run import directory, provenance
from tests.distributed import runs

HERE = Path(__file__).resolve().parent
# Long enough to be hit in its soft phase, and some seconds before its end; what is left out changes no weight.
RUN = [
    "recipe=parity",
    "logger=none",
    "engine.kernels=eager",
    "data.max_train_samples=512",  # with fewer it stays on a plateau, whose end depends on how ranks' sums round
    "train.num_steps=280",
    "train.eval_every=2",  # slow enough for a busy Slurm to take the nodes away in the middle
    "train.checkpoint_every=40",
    "pruners.weights.schedule.end=90",
    "pruners.weights.schedule.hard_from=90",
    "pruners.weights.schedule.select_every=15",
]
PATIENCE_S = 400.0  # for anything to happen, on a machine that does other things


@dataclass(frozen=True)
class Lab:
    """The cluster: two nodes of one processor each."""

    path: Path

    @property
    def environment(self) -> dict[str, str]:
        """With it, Slurm's commands talk to this cluster, and jobs run on this machine's CPU."""
        ours = {"SLURM_CONF": str(self.path / "etc" / "slurm.conf"), "LAB": str(self.path)}
        return os.environ | ours | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def call(self, *command: str) -> str:
        """What a command says; a failure is the test's."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def script(self, name: str, *arguments: str) -> str:
        """One of the scripts beside this file. Its daemons keep its output open, so it goes to a file."""
        with open(self.path / f"{name}.out", "w+") as output:
            done = subprocess.run(
                [HERE / name, *arguments], env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
            output.seek(0)
            assert done.returncode == 0, output.read()
            return output.read()

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Python in this cluster's environment, however it ends."""
        command = [sys.executable, *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=PATIENCE_S)

    def pat(self, *arguments: str) -> str:
        """The command."""
        return self.call(sys.executable, "-m", "pat.cli", *arguments)

    def settings(self) -> Path:
        """This cluster, for --cluster."""
        path = self.path / "cluster.yaml"
        path.write_text(
            f"nodes: 2\nranks_per_node: 1\ntime_limit_min: 30\ngrace_s: 10\ncommand: {sys.executable} -m pat.cli\n"
        )
        return path

    @property
    def disk(self) -> Path:
        """A small file system that both nodes see."""
        return self.path / "disk"

    @contextlib.contextmanager
    def full_disk(self) -> Iterator[None]:
        """A megabyte is left: for logs, not for a checkpoint."""
        free = shutil.disk_usage(self.disk).free
        filler = self.disk / "filler"
        filler.write_bytes(bytes(free - (1 << 20)))
        try:
            yield
        finally:
            filler.unlink()

    def submit(self, run_dir: Path, *overrides: str) -> Job:
        """A job of two nodes with a rank each, unless told otherwise."""
        self.pat("submit", "--cluster", str(self.settings()), *RUN, f"run.dir={run_dir}", *overrides)
        return Job(self, directory.RunDir(run_dir))

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Jobs are queued, and none begins."""
        self.call("scontrol", "update", "PartitionName=main", "State=DOWN")
        try:
            yield
        finally:
            self.call("scontrol", "update", "PartitionName=main", "State=UP")

    def preempt(self, seconds: int = 1) -> None:
        """Take both nodes away for a while; returns when that is over."""
        self.call(
            *("sbatch", "--wait", "--partition=urgent", "--nodes=2", "--job-name=urgent"),
            *(f"--output={self.path}/urgent.log", "--wrap", f"sleep {seconds}"),
        )


@dataclass(frozen=True)
class Job:
    """A submitted run."""

    lab: Lab
    run: directory.RunDir

    @property
    def id(self) -> str:
        """Slurm's number."""
        return files.read_json(self.run.job)["job_id"]  # type: ignore[index]

    def detail(self, key: str) -> str:
        """A field of `scontrol show job`."""
        words = self.lab.call("scontrol", "show", "job", self.id).split()
        return next(word.partition("=")[2] for word in words if word.startswith(f"{key}="))

    def minutes_after(self, seconds: int) -> int:
        """A time limit that leaves at least so many seconds from now."""
        hours, minutes, elapsed = map(int, self.detail("RunTime").split(":"))
        return math.ceil((3600 * hours + 60 * minutes + elapsed + seconds) / 60)

    def limit(self, minutes: int) -> None:
        """Another time limit."""
        self.lab.call("scontrol", "update", f"JobId={self.id}", f"TimeLimit={minutes}")

    @property
    def starts(self) -> list[dict[str, Any]]:
        """Each time the run began."""
        return provenance.read(self.run.path)

    def text(self) -> str:
        """What the job and its ranks have said."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.run.logs.glob("*.log")))

    def until(self, condition: Callable[[], object], seconds: float = PATIENCE_S) -> None:
        """Wait for a condition."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"did not happen in {seconds} s:\n{self.text()[-6000:]}"
            time.sleep(0.1)

    def until_left(self) -> None:
        """Wait until Slurm has done with the job, and has all nodes for the next."""
        self.until(
            lambda: (
                self.id not in self.lab.call("squeue", "-h", "-o", "%A").split()
                and self.lab.call("sinfo", "-h", "-N", "-t", "idle", "-p", "main", "-o", "%N").split() == ["n1", "n2"]
            )
        )

    def until_start(self, number: int) -> None:
        """Wait until the run has begun so many times."""
        self.until(lambda: len(self.starts) >= number)

    def until_step(self, step: int, start: int = 1) -> None:
        """Wait until the start of this number (1: the first) has trained a step."""
        self.until(
            lambda: (
                len(self.starts) >= start
                and any(
                    line["step"] >= step and line["time"] > self.starts[-1]["time"]
                    for line in runs.losses(self.run.path)
                )
            )
        )

    def until_done(self) -> dict[str, Any]:
        """Wait for the end, and return the result."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.until(lambda: self.detail("JobState") in over)
        assert self.detail("JobState") == "COMPLETED", self.text()[-6000:]
        return runs.result(self.run.path)

    def send(self, rank: int, number: signal.Signals) -> None:
        """A signal to a rank; the nodes are on this machine, under other names."""
        record = next(record for record in process.rank_records(self.run.path) if record.rank == rank)
        os.kill(record.process.pid, number)
