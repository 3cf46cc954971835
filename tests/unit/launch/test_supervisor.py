"""What is said of a rank that was killed: what matters, and nothing that is in every log."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pat.common.noise import telling
from pat.launch.process import Process, RankRecord
from pat.launch.supervisor import Supervisor, as_dead
from pat.run.directory import ExitCode, RunDir, read_exit

NOISE = """\
/usr/bin/ld: cannot find -laio: No such file or directory
collect2: error: ld returned 1 exit status
[2026-01-01 10:00:00,000] [INFO] [real_accelerator.py:222:get_accelerator] Setting ds_accelerator to cpu
[2026-01-01 10:00:00,000] [WARNING] [async_io.py:1:x] async_io requires the dev libaio .so object and headers
[Gloo] Rank 0 is connected to 1 peer ranks. Expected number of connected peer ranks is : 1

"""


def killed(run_dir: Path, logs: dict[int, str], rank: int, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What the terminal gets when this rank has been killed."""
    run = RunDir(run_dir)
    run.logs.mkdir(parents=True)
    run.log(rank).write_text("of an earlier start\n")
    supervisor = Supervisor(run_dir, subprocess.Popen(["true"]))
    supervisor.launcher.wait()
    for number, text in logs.items():
        with open(run.log(number), "a") as log:
            log.write(text)
    supervisor.failed = as_dead(RankRecord(rank, Process(123, 5)))
    assert supervisor.result() == ExitCode.ERROR
    assert (read_exit(run_dir) or {})["message"].startswith(f"rank {rank} died")
    *said, last = capsys.readouterr().err.splitlines()
    assert last.endswith("no checkpoint had been saved")
    return said


def test_a_killed_rank_that_has_said_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails if what DeepSpeed's look for a library leaves in every log is shown as the end of this one."""
    steps = "".join(f"step {n}/30  loss 1\n" for n in range(1, 10))
    first, *rest = killed(tmp_path / "run", {0: NOISE + steps, 1: NOISE}, 1, capsys)
    assert first.startswith("pat: rank 1 died") and first.endswith("rank-1.log")
    assert rest == ["rank 1 said nothing.", "rank 0 said last:", *(f"  step {n}/30  loss 1" for n in (7, 8, 9))]


def test_a_killed_rank_that_has_said_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = killed(tmp_path / "run", {0: NOISE + "Fatal Python error: Bus error\n" + NOISE}, 0, capsys)
    assert said[1:] == ["rank 0 said last:", "  Fatal Python error: Bus error"]


def test_only_known_lines_are_left_out() -> None:
    assert telling(NOISE, 99) == []
    errors = ["RuntimeError: aio handle failed", "collect2: fatal error: ld terminated", "  indented", "Killed"]
    assert telling(NOISE + "\n".join(errors), 99) == errors
    assert telling("\n".join(map(str, range(20))), 3) == ["17", "18", "19"]
