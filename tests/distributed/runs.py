"""A real `pat train` of the parity recipe to watch, to signal and to kill."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pat.checkpoint.reader import read_manifest
from pat.common import files
from pat.launch import process
from pat.launch.process import Process
from pat.run import directory
from pat.run.directory import ExitCode
from tests.distributed import ranks as forked

# Evaluations that take long enough to be interrupted; what is left out changes no weight.
PARITY = [
    "recipe=parity",
    "logger=none",
    "engine.kernels=eager",
    "data.eval_fraction=0.1",
    "data.max_eval_samples=null",
    "train.eval_batch_size=1",
]
PATIENCE_S = 240.0  # for anything to happen, on a machine that does other things


class Start:
    """One start of the command, in a run directory that may have seen others.

    `launched=False`: by forked ranks, a third of the work, where a test is not about parent and launcher.
    """

    def __init__(self, run_dir: Path, *overrides: str, ranks: int = 2, launched: bool = True) -> None:
        self.run = directory.RunDir(run_dir)
        self.number = ranks
        self.began = time.time()
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        self.output = run_dir.parent / f"{run_dir.name}.out"  # a file: ranks outlive a killed parent's pipe
        arguments = ["train", *PARITY, f"run.dir={run_dir}", *overrides]
        self.everyone: dict[str, Process] = {}
        if not launched:
            logs = [self.output, *(self.output.with_suffix(f".{rank}.out") for rank in range(1, ranks))]
            self.process: Any = forked.Together(forked.fork_ranks("pat.cli", arguments, logs))
            return
        environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with open(self.output, "w") as output:
            command = [sys.executable, "-m", "pat.cli", *arguments]
            self.process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        parent = Process.of(self.process.pid)
        assert parent
        self.everyone["parent"] = parent

    def find_everyone(self) -> dict[str, Process]:
        """Parent, launcher and ranks, once all are there."""
        self.until(lambda: len(self._living()) == self.number)
        ranks = self._living()
        if self.everyone:
            launcher = Process.of(int(_stat(ranks[0].process)[1]))
            assert launcher
            self.everyone["launcher"] = launcher
        self.everyone |= {f"rank {r.rank}": r.process for r in ranks}
        return self.everyone

    def _living(self) -> list[process.RankRecord]:
        return [record for record in process.rank_records(self.run.path) if record.process.alive]

    def until(self, condition: Callable[[], object], pause_s: float = 0.005) -> None:
        """Wait for a condition; a start that ends before it holds is a failure."""
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.process.poll() is None or condition(), f"it ended too early:\n{self.text()}"
            assert time.monotonic() < end, f"did not happen in time:\n{self.text()}"
            time.sleep(pause_s)

    def until_step(self, step: int) -> None:
        """Wait until this start has logged the training of a step."""
        self.find_everyone()
        self.until(lambda: any(line["step"] >= step and line["time"] > self.began for line in losses(self.run.path)))

    def until_saving(self) -> None:
        """Wait until a checkpoint is being written."""
        before = set(self.partial())
        self.until(lambda: set(self.partial()) - before, pause_s=0.0005)

    def partial(self) -> list[str]:
        """Checkpoints of this start that are not whole; an earlier one may have left some, too."""
        found = []
        for path in self.run.checkpoints.glob("*.partial"):
            with contextlib.suppress(FileNotFoundError):  # whole by now
                if path.stat().st_mtime >= self.began:
                    found.append(path.name)
        return found

    def send(self, who: str, number: int = signal.SIGKILL) -> None:
        """A signal to the parent, the launcher or a rank."""
        os.kill(self.everyone[who].pid, number)

    def end(self, seconds: float = PATIENCE_S) -> int:
        """The exit code, when all have left."""
        code = self.process.wait(PATIENCE_S)
        assert self.nobody_left(seconds), f"left behind: {[w for w, p in self.everyone.items() if p.alive]}"
        return code

    def nobody_left(self, seconds: float) -> bool:
        """Whether all processes of this start end in time; a parent that is killed is reaped here."""
        ranks = [record.process for record in process.rank_records(self.run.path)]
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return process.wait_gone([*self.everyone.values(), *ranks], seconds)

    def text(self) -> str:
        """What it has said on the terminal."""
        return self.output.read_text(errors="replace")


def _stat(who: Process) -> list[str]:
    return Path(f"/proc/{who.pid}/stat").read_text().rpartition(")")[2].split()


def lines(run_dir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl; its last line may be half written."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        for line in directory.RunDir(run_dir).metrics.read_text().splitlines():
            found.append(json.loads(line))
    return found


def losses(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of training steps."""
    return [line for line in lines(run_dir) if "train/loss" in line]


def curve(run_dir: Path) -> dict[str, dict[int, float]]:
    """Training loss and evaluation loss of every step that has one; each step only once."""
    found: dict[str, dict[int, float]] = {"train/loss": {}, "eval/loss": {}, "dense/loss": {}}
    for line in lines(run_dir):
        for key in found.keys() & line.keys():
            assert line["step"] not in found[key], f"step {line['step']} is logged twice"
            found[key][line["step"]] = line[key]
    return found


def result(run_dir: Path) -> dict[str, Any]:
    """What must be the same however often a run was interrupted."""
    summary = files.read_json(directory.RunDir(run_dir).summary)
    assert summary, "no summary.json"
    kept = ("step", "phase", "sparsity", "mask_sha256", "weights_sha256", "dense_metrics", "metrics")
    return {key: summary[key] for key in kept} | curve(run_dir)


def latest(run_dir: Path) -> int:
    """Step of the checkpoint that the next start will try first; 0 without any."""
    try:
        return int((directory.RunDir(run_dir).checkpoints / "latest").read_text().removeprefix("step-"))
    except OSError:
        return 0


def tear(checkpoint: Path) -> Path:
    """Cut the largest file of a checkpoint in half."""
    largest = max((p for p in checkpoint.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    return largest


def reference(run_dir: Path) -> dict[str, Any]:
    """The result of a run that nobody disturbs."""
    start = Start(run_dir, launched=False)
    assert start.end() == 0, start.text()
    return result(run_dir)


def preempted(
    run_dir: Path, who: str, number: int, step: int, *overrides: str, ranks: int = 2, launched: bool = True
) -> Start:
    """Start, ask for the end after a step, and wait for it."""
    start = Start(run_dir, *overrides, ranks=ranks, launched=launched)
    start.until_step(step)
    start.send(who, number)
    assert start.end() == ExitCode.PREEMPTED, start.text()
    reached = losses(run_dir)[-1]["step"]
    assert latest(run_dir) == reached, "the checkpoint is of the current step"
    manifest = read_manifest(directory.RunDir(run_dir).checkpoints / f"step-{reached:08d}")
    assert manifest["step"] == manifest["trainer"]["step"] == reached
    assert f"stopped on request at step {reached}, all saved" in start.text()
    return start
