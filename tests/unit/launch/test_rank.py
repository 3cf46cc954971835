"""A rank on its own: whom it outlives, and what it leaves alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pat.launch import process, rank
from pat.run.directory import ExitCode, RunDir, read_exit, write_exit
from pat.zero.launcher import LAUNCHER_PID

CHILD = """
import os, signal, sys, time
from pat.launch import process, rank
process.POLL_S = rank.POLL_S = 0.05
{change}
signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
rank.watch_parent()
time.sleep(float(sys.argv[1]))
"""
CHANGES = {
    "as it is": "",
    "no pidfd_open": "del os.pidfd_open",
    "refused": "def refuse(*_): raise PermissionError\nos.pidfd_open = refuse",
    "no parent": "os.getppid = lambda: 0",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_rank_stays_while_its_parent_lives(change: str) -> None:
    """Fails if a rank takes a kernel that gives no notice of its parent's end for that end."""
    program = CHILD.format(change=CHANGES[change])
    assert subprocess.run([sys.executable, "-c", program, "0.3"], timeout=60).returncode == 0


def test_without_notice_of_its_end_the_parent_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    monkeypatch.setattr(rank, "POLL_S", 0.01)
    parents = iter([5, 5, 5, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    look = rank._end_of(5)
    assert look is not None
    look()
    assert next(parents, None) is None, "it has looked until the parent was another"


@pytest.mark.parametrize("gone", ["before", "between"])
def test_a_rank_whose_parent_goes_while_it_begins_is_asked_to_leave(gone: str, tmp_path: Path) -> None:
    """Before it runs, or once it has said that it exists: nobody else would ever end it."""
    program = (
        "import os, sys, time; from pathlib import Path\n"
        "from pat.launch import process, rank; from pat.run import preemption\n"
        "process.POLL_S = rank.POLL_S = 0.05; write = rank.OwnRecord.write\n"
        "rank.OwnRecord.write = lambda own: (write(own), time.sleep(1.0))\n"
        "def work(run_dir):\n"
        "    end = time.monotonic() + 60\n"
        "    while preemption.preemption_flag().signal is None and time.monotonic() < end: time.sleep(0.05)\n"
        "    (run_dir / 'left').write_text(str(preemption.preemption_flag().signal)); return 85\n"
        "rank.run_rank(Path(sys.argv[1]), 0, work)"
    )
    parent = (
        "import os, subprocess, sys, time; from pathlib import Path\n"
        f"os.environ[{LAUNCHER_PID!r}] = str(os.getpid() if sys.argv[1] == 'between' else 1)\n"
        "child = subprocess.Popen([sys.executable, '-c', sys.argv[3], sys.argv[2]])\n"
        "record = Path(sys.argv[2]) / 'ranks' / 'rank-0.json'\n"
        "while not record.exists() and child.poll() is None: time.sleep(0.01)\n"
        "if sys.argv[1] == 'before': child.wait()\n"
    )
    subprocess.run([sys.executable, "-c", parent, gone, tmp_path, program], timeout=120, check=True)
    end = time.monotonic() + 60
    while not (tmp_path / "left").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert (tmp_path / "left").read_text() == str(int(signal.SIGTERM))


def test_a_start_that_is_refused_leaves_the_result_of_the_one_that_runs(tmp_path: Path) -> None:
    """Fails if the exit code of a run is that of a second start, which found the directory in use."""
    program = (
        "import sys; from pathlib import Path; from pat.launch import process, rank\n"
        "def work(run_dir):\n    with process.only_user_of(run_dir): return 0\n"
        "sys.exit(rank.run_rank(Path(sys.argv[1]), 0, work))"
    )
    with process.only_user_of(tmp_path):
        RunDir(tmp_path).exit.write_text("{}")
        found = subprocess.run([sys.executable, "-c", program, tmp_path], timeout=60, capture_output=True, text=True)
        assert found.returncode == ExitCode.BAD_INPUT and RunDir(tmp_path).exit.read_text() == "{}"
    (record,) = RunDir(tmp_path).ranks.glob("*.json")
    assert "in use by process" in record.read_text()


def test_a_signal_finds_its_handler_as_soon_as_the_record_can_be_read(tmp_path: Path) -> None:
    """Fails if a rank that is preempted just after it says that it exists dies of it."""
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from pat.launch import rank; from pat.run import preemption\n"
        "write = rank.OwnRecord.write\n"
        "rank.OwnRecord.write = lambda own: (write(own), os.kill(os.getpid(), signal.SIGUSR1))\n"
        "def work(run_dir): return 85 if preemption.preemption_flag().signal == signal.SIGUSR1 else 1\n"
        "sys.exit(rank.run_rank(Path(sys.argv[1]), 0, work))"
    )
    assert subprocess.run([sys.executable, "-c", program, tmp_path], timeout=60).returncode == ExitCode.PREEMPTED


def test_a_start_that_is_refused_leaves_a_result_that_is_final(tmp_path: Path) -> None:
    """Fails if a command with a mistake makes a run that is done, or has diverged, one that never got so far."""
    program = (
        "import sys; from pathlib import Path; from pat.launch import rank\n"
        "def work(run_dir): raise ValueError('a mistake')\n"
        "for run_dir in sys.argv[1:]: code = rank.run_rank(Path(run_dir), 0, work)\n"
        "sys.exit(code)"
    )
    before = {"done": ExitCode.DONE, "diverged": ExitCode.DIVERGED, "preempted": ExitCode.PREEMPTED, "new": None}
    for name, code in before.items():
        (tmp_path / name).mkdir()
        if code is not None:
            write_exit(tmp_path / name, code, "earlier")
    command = [sys.executable, "-c", program, *(tmp_path / name for name in before)]
    assert subprocess.run(command, timeout=60, capture_output=True).returncode == ExitCode.BAD_INPUT
    after = {name: read_exit(tmp_path / name) or {} for name in before}
    assert {name: (found.get("code"), found.get("message")) for name, found in after.items()} == {
        "done": (ExitCode.DONE, "earlier"),
        "diverged": (ExitCode.DIVERGED, "earlier"),
        "preempted": (ExitCode.BAD_INPUT, "a mistake"),
        "new": (ExitCode.BAD_INPUT, "a mistake"),
    }
