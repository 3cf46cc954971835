from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from pat.common import files, seeds
from pat.launch.process import Process, RankRecord, forget_ranks_from, rank_records
from pat.run import directory, provenance
from pat.run.directory import ExitCode, RunDir


def test_write_atomic_replaces_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_atomic(path, "old")
    files.write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        files.write_atomic(path, "newer")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_exit_file(tmp_path):
    assert directory.read_exit(tmp_path) is None
    directory.write_exit(tmp_path, 85, "saved")
    found = directory.read_exit(tmp_path)
    assert found and (found["code"], found["meaning"], found["message"]) == (85, "preempted", "saved")
    RunDir(tmp_path).exit.write_text("{torn")
    assert directory.read_exit(tmp_path) is None


def test_the_flag_is_set_by_signals_and_by_nothing_else():
    code = (
        "import os, signal, sys\n"
        "from pat.run.preemption import preemption_flag\n"
        "flag = preemption_flag()\n"
        "assert preemption_flag() is flag and not flag.requested\n"
        "os.kill(os.getpid(), getattr(signal, sys.argv[1]))\n"
        "print(flag.requested, flag.signal)\n"
        "child = os.fork()\n"  # a data worker: the signal must end it
        "if child == 0:\n"
        "    os.kill(os.getpid(), signal.SIGTERM); os._exit(0)\n"
        "print(os.WTERMSIG(os.waitpid(child, 0)[1]))\n"
    )
    for name in ("SIGUSR1", "SIGTERM", "SIGINT"):
        done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True)
        assert done.stdout.split() == ["True", str(int(getattr(signal, name))), str(int(signal.SIGTERM))], done.stderr


def test_a_process_is_more_than_its_pid():
    me = Process.of(os.getpid())
    assert me and me.alive and not Process(me.pid, me.start + 1).alive
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    found = Process.of(child.pid)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert found and not found.alive, "a zombie is dead"
    child.wait()
    Process(me.pid, me.start + 1).send(signal.SIGKILL)  # not us


def test_rank_records(tmp_path):
    RunDir(tmp_path).ranks.mkdir()
    records = [RankRecord(rank, Process(10 + rank, 5), code) for rank, code in ((0, None), (1, 85), (10, 0))]
    for record in reversed(records):
        record.write(tmp_path)
    RunDir(tmp_path).rank(3).write_text("{torn")
    assert rank_records(tmp_path) == records
    forget_ranks_from(tmp_path, 2)
    assert rank_records(tmp_path) == records[:2]


def test_versions_name_the_code(tmp_path):
    found = provenance.versions()
    assert {"pat", "torch", "deepspeed", "transformers"} <= found.keys()
    json.dumps(found)


def test_the_hash_of_the_code_is_that_of_every_source_file(tmp_path, monkeypatch):
    """Would catch: an edit, a new name or a new file that a run's record does not show."""
    package, hashes = tmp_path / "pat", []
    (package / "sub").mkdir(parents=True)
    monkeypatch.setattr(provenance.pat, "__file__", str(package / "__init__.py"))

    def changed(name, text):
        (package / name).write_text(text)
        hashes.append(provenance.code_sha256.__wrapped__())

    changed("__init__.py", "")
    changed("sub/a.py", "x = 1")
    changed("sub/a.py", "x = 2")
    (package / "sub" / "a.py").rename(package / "sub" / "b.py")
    changed("__init__.py", "")
    assert len(set(hashes)) == 4
    changed("notes.txt", "no source")
    assert hashes[-1] == hashes[-2]


def test_seeds_repeat():
    import numpy
    import torch

    draws = []
    for _ in range(2):
        seeds.seed_everything(2**33 + 1)
        draws.append((torch.rand(3).tolist(), numpy.random.rand(3).tolist()))
    assert draws[0] == draws[1]


def test_exit_codes_are_documented(repository):
    from pat.commands._help import EXIT_CODES

    page = (repository / "docs" / "checkpoints.md").read_text()
    for code in ExitCode:
        assert f"\n  {code.value:<4} {code.meaning}\n" in f"{EXIT_CODES}\n"
        assert f"\n| {code.value} | " in page


def test_exit_codes_are_what_other_programs_know():
    assert [int(code) for code in ExitCode] == [0, 1, 2, 3, 4, 5, 6, 85, 130]
    assert [int(code) for code in ExitCode if code.agreed] == [0, 3, 4, 5, 6, 85]
    assert [int(code) for code in ExitCode if code.final] == [0, 2, 3, 4, 5, 6]
    assert ExitCode(85) is ExitCode.PREEMPTED and json.loads(json.dumps(ExitCode(85))) == 85
