"""Starting, signalling and losing ranks: through DeepSpeed's real launcher, with ranks that hold no model.

The quick set has three: a signal, a failing rank, a launcher that is gone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pat.common.machine import usable_cores
from pat.launch import process
from pat.run import directory
from pat.schema import Config, EngineConfig

pytestmark = [pytest.mark.distributed, pytest.mark.real_processes]

PATIENCE_S = 120.0  # for anything to happen, on a machine that does other things
DUMMY = Path(__file__).with_name("dummy_rank.py")
PARENT = """
import sys
from pathlib import Path
from pat.launch import single_node, supervisor
from pat.schema import Config, EngineConfig
supervisor.GRACE_S = supervisor.ORPHAN_GRACE_S = float(sys.argv[3])
config = Config(engine=EngineConfig(world_size=2, threads_per_rank=1))
sys.exit(single_node.launch(Path(sys.argv[1]), config, [sys.argv[2]]))
"""


class Start:
    """A `pat train`-like parent with two dummy ranks; those that are stuck are soon ended."""

    def __init__(self, run_dir: Path, **behaviour: str) -> None:
        self.run_dir = run_dir
        (run_dir / "behaviour.json").write_text(json.dumps({key.removeprefix("r"): v for key, v in behaviour.items()}))
        grace_s = "2" if "stuck" in behaviour.values() else "60"
        self.process = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(run_dir), str(DUMMY), grace_s],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(directory.__file__).parents[2])},
        )

    def ranks(self, count: int = 2) -> list[process.Process]:
        """Once so many ranks are there."""
        until(lambda: len(process.rank_records(self.run_dir)) == count)
        return [record.process for record in process.rank_records(self.run_dir)]

    def launcher(self) -> int:
        """The pid of DeepSpeed's launcher: the ranks' parent."""
        fields = Path(f"/proc/{self.ranks()[0].pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[1])

    def end(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, output


def interrupt_twice(command: subprocess.Popen[str]) -> str:
    """Ctrl-C, and again once the first is answered (two that wait to be seen are one); what was said until then."""
    command.send_signal(signal.SIGINT)
    assert command.stdout
    said = ""
    for line in command.stdout:
        said += line
        if "SIGINT" in line:
            break
    command.send_signal(signal.SIGINT)
    return said


def until(condition, seconds: float = PATIENCE_S) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def nobody_left(ranks: list[process.Process]) -> bool:
    return process.wait_gone(ranks, PATIENCE_S)


@pytest.mark.slow
@pytest.mark.parametrize("code", [0, 85])
def test_the_exit_code_is_the_one_that_the_ranks_wrote(tmp_path, code):
    directory.write_exit(tmp_path, 4, "from an earlier start")
    start = Start(tmp_path, **{"*": str(code)})
    found, output = start.end()
    assert found == code, output
    assert "an earlier start" not in output
    assert ("on purpose" in output) == bool(code)
    assert "does: " in output and "rank 1 of 2" not in output, "rank 0 speaks on the terminal, rank 1 in its log"
    assert "rank 1 of 2 does" in directory.RunDir(tmp_path).log(1).read_text()
    assert [record.code for record in process.rank_records(tmp_path)] == [code, code]


@pytest.mark.parametrize(
    "sent, received",
    [
        pytest.param("SIGUSR1", "SIGUSR1", marks=pytest.mark.slow),
        pytest.param("SIGTERM", "SIGTERM", marks=pytest.mark.slow),
        pytest.param("SIGINT", "SIGTERM", marks=pytest.mark.slow),  # what is translated, too
    ],
)
def test_signals_reach_every_rank_and_not_the_launcher(tmp_path, sent, received):
    start = Start(tmp_path, **{"*": "wait"})
    ranks = start.ranks()
    start.process.send_signal(signal.Signals[sent])
    code, output = start.end()
    assert code == directory.ExitCode.PREEMPTED, output
    for rank in range(2):
        assert (tmp_path / f"signal-{rank}").read_text() == str(int(signal.Signals[received]))
    assert nobody_left(ranks)


@pytest.mark.slow
def test_a_signal_to_one_rank_is_seen_by_that_rank(tmp_path):
    start = Start(tmp_path, r0="wait", r1="0")
    os.kill(start.ranks()[0].pid, signal.SIGUSR1)
    assert start.end()[0] == directory.ExitCode.PREEMPTED


@pytest.mark.slow
def test_a_second_interrupt_ends_everything_at_once(tmp_path):
    start = Start(tmp_path, **{"*": "stuck"})
    ranks = start.ranks()
    interrupt_twice(start.process)
    assert start.end()[0] == directory.ExitCode.INTERRUPTED
    assert nobody_left(ranks)


@pytest.mark.slow
def test_a_rank_that_dies_takes_the_others_along_and_is_named(tmp_path):
    start = Start(tmp_path, r0="stuck", r1="die")
    ranks = start.ranks()
    code, output = start.end()
    assert code == directory.ExitCode.ERROR
    assert "rank 1 died" in output and "rank 1 of 2 does: die" in output, output
    left = directory.read_exit(tmp_path)
    assert left and left["code"] == code and left["message"].startswith("rank 1 died")
    assert nobody_left(ranks)


@pytest.mark.parametrize(
    "word, code, text",
    [
        ("fail", 1, "the cable came out"),
        pytest.param("refuse", 2, "the data set is empty", marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_fails_is_named_with_its_error(tmp_path, word, code, text):
    start = Start(tmp_path, r0="stuck", r1=word)
    ranks = start.ranks()
    found, output = start.end()
    assert found == code and f"rank 1: {'RuntimeError: ' if code == 1 else ''}{text}" in output, output
    assert "Traceback" not in output and "Traceback" in directory.RunDir(tmp_path).log(1).read_text()
    assert nobody_left(ranks)


@pytest.mark.slow
@pytest.mark.parametrize("word", ["wait", "stuck"])
def test_killing_the_launcher_leaves_nobody(tmp_path, word):
    start = Start(tmp_path, **{"*": word})
    ranks = start.ranks()
    os.kill(start.launcher(), signal.SIGKILL)
    code, output = start.end()
    assert code == (directory.ExitCode.PREEMPTED if word == "wait" else directory.ExitCode.ERROR), output
    assert nobody_left(ranks)


@pytest.mark.slow
def test_killing_the_parent_leaves_nobody(tmp_path):
    start = Start(tmp_path, **{"*": "wait"})
    ranks, launcher = start.ranks(), process.Process.of(start.launcher())
    assert launcher
    start.process.kill()
    start.process.wait()
    assert nobody_left([*ranks, launcher])
    assert (directory.read_exit(tmp_path) or {})["code"] == directory.ExitCode.PREEMPTED, "they saved first"


def test_ranks_left_by_an_earlier_start_are_ended_before_the_next(tmp_path):
    stuck = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", stuck], stdout=subprocess.PIPE)
    assert child.stdout and child.stdout.readline()
    old = process.Process.of(child.pid)
    assert old
    directory.RunDir(tmp_path).ranks.mkdir()
    process.RankRecord(0, old).write(tmp_path)
    other = process.Process(old.pid, old.start + 1)  # a recycled pid: not the one that was recorded
    process.RankRecord(1, other).write(tmp_path)
    process.clear_ranks(tmp_path, patience_s=0.3)
    assert child.wait(5) == -signal.SIGKILL
    assert process.rank_records(tmp_path) == []


def test_a_run_directory_has_one_user(tmp_path):
    with process.only_user_of(tmp_path):
        with pytest.raises(ValueError, match=f"in use by process {os.getpid()}"), process.only_user_of(tmp_path):
            pass
    with process.only_user_of(tmp_path):
        pass


def test_ranks_get_threads_and_a_directory_of_their_own(monkeypatch):
    from pat.launch.single_node import rank_variables

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    variables = rank_variables(Config(engine=EngineConfig(world_size=2)))
    assert int(variables["OMP_NUM_THREADS"]) == max(1, usable_cores() // 2)
    assert "torch_extensions" in variables["TORCH_EXTENSIONS_DIR"]
    assert rank_variables(Config(engine=EngineConfig(threads_per_rank=3)))["OMP_NUM_THREADS"] == "3"
