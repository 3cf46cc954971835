"""Ops are compiled by one process at a time, and a killed one does not keep the others waiting."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton

from pat.common.extensions import extensions_dir
from pat.zero import op_lock
from pat.zero.op_lock import HeldBaton

PATIENCE_S = 60
NAME = "FileBaton"
LOADS = """
import sys, time
from pat.zero.op_lock import HeldBaton
baton = HeldBaton(sys.argv[1])
print("here", flush=True)
mine = baton.try_acquire()
print("compiles" if mine else "waited", flush=True)
sys.stdin.readline()
baton.release() if mine else baton.wait()
"""


def load(lock: Path) -> subprocess.Popen[str]:
    """A process that takes the lock and keeps it until it reads a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOADS, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert said(process) == "here"
    return process


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_killed_process_keeps_nobody_waiting_however_many_others_live(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    killed = load(lock)
    assert said(killed) == "compiles" and lock.exists()
    others = [load(lock) for _ in range(2)]
    time.sleep(1)  # they wait now, one after the other
    killed.kill()
    killed.wait()
    # The first that gets it sees that it was not released, and compiles; the other sees that it was.
    for other in others:
        assert other.stdin is not None
        other.stdin.write("\n")
        other.stdin.flush()
    answers = [other.communicate(timeout=PATIENCE_S)[0].strip() for other in others]
    assert sorted(answers) == ["compiles", "waited"]
    assert not lock.exists()


def test_a_lock_that_a_killed_process_left_is_taken_at_once(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    killed = load(lock)
    assert said(killed) == "compiles"
    killed.kill()
    killed.wait()
    assert lock.exists()
    baton = HeldBaton(str(lock))
    assert baton.try_acquire()
    baton.release()
    assert not lock.exists()


def test_torchs_own_lock_is_waited_for_until_its_owner_cannot_live(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    torchs = FileBaton(str(lock))
    assert torchs.try_acquire()
    second = load(lock)
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(3)
    torchs.release()
    assert said(second) == "compiles"
    assert not FileBaton(str(lock)).try_acquire(), "torch's own does not wait for this one"
    second.communicate("\n", timeout=PATIENCE_S)
    assert FileBaton(str(lock)).try_acquire()
    long_ago = time.time() - 2 * op_lock.ABANDONED_S
    os.utime(lock, (long_ago, long_ago))
    assert HeldBaton(str(lock)).try_acquire()


def test_a_lock_of_another_machine_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if two nodes compile in one folder, where the file system locks for one machine only."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    lock, here = tmp_path / "lock", op_lock.boot_id()
    theirs, ours = HeldBaton(str(lock)), HeldBaton(str(lock), wait_seconds=0.01)
    monkeypatch.setattr(op_lock, "boot_id", lambda: "another")
    assert theirs.try_acquire()
    monkeypatch.setattr(op_lock, "boot_id", lambda: here)
    monkeypatch.setattr(time, "sleep", lambda _: theirs.release())
    assert ours.try_acquire() and theirs._held is not None and lock.exists(), "only after theirs was released"
    lock.unlink()  # by one who could not know that this one lives
    ours.release()


def test_only_pats_own_directory_changes_torchs_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp_extension, NAME, FileBaton)
    monkeypatch.setenv("PAT_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "mine"))
    op_lock.load_ops_under_held_lock()
    assert getattr(cpp_extension, NAME) is FileBaton
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(extensions_dir(os.environ)))
    op_lock.load_ops_under_held_lock()
    assert getattr(cpp_extension, NAME) is HeldBaton


def test_a_run_on_cpus_does_not_warn_of_a_toolkit_that_it_does_not_use() -> None:
    """torch as it is built for GPUs, whatever is installed here."""
    code = """
import torch
from pat.zero.op_lock import load_ops_under_held_lock
torch.version.cuda, torch.cuda._is_compiled, torch._C._cuda_getDeviceCount = "12.8", lambda: True, lambda: 0
load_ops_under_held_lock()
"""
    for accelerator, warns in (("cpu", False), ("cuda", True)):
        environment = os.environ | {"DS_ACCELERATOR": accelerator, "CUDA_HOME": "/there", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert ("CUDA" in done.stderr) is warns, done.stderr


def test_without_links_all_is_as_torch_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", link)
    first, second = (HeldBaton(str(tmp_path / "lock")) for _ in range(2))
    assert first.try_acquire() and first._held is None
    monkeypatch.setattr(time, "sleep", lambda _: first.release())  # the second waits for it
    assert second.try_acquire()
    second.release()
    second.wait()
