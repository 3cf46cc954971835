"""The watchdog bites when nothing happens, and only then; and a rank that it ends says so."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time

import pytest

from pat.launch.process import Process, RankRecord, rank_records
from pat.run.directory import RunDir, read_exit
from pat.training import watchdog
from pat.training.watchdog import Watchdog


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "_TICK_S", 0.02)


def test_it_barks_once_and_then_bites_once_when_nothing_happens():
    bitten: list[float] = []
    barked: list[float] = []
    dog, began, bite = Watchdog(), time.monotonic(), threading.Event()
    dog.start(0.6, lambda: bitten.append(time.monotonic() - began) or bite.set(), barked.append)
    assert bite.wait(60.0)
    time.sleep(0.2)
    assert len(bitten) == 1 and bitten[0] >= 0.6
    assert len(barked) == 1 and 0.3 <= barked[0] < 0.6


def test_it_barks_again_only_after_a_beat():
    barks: queue.Queue[float] = queue.Queue()
    bitten = threading.Event()
    dog = Watchdog()
    dog.start(60.0, bitten.set, barks.put)
    for _ in range(2):
        while barks.empty():
            dog.waited_s = 31.0  # more than half
            time.sleep(0.05)
        assert barks.get() > 30.0
        time.sleep(0.2)
        assert barks.empty(), "once"
        dog.beat()
    dog.stop()
    assert not bitten.is_set()


def test_beats_and_the_end_keep_it_quiet():
    bitten = threading.Event()
    dog = Watchdog()
    dog.beat()  # before it was started, too
    dog.start(2.0, bitten.set, lambda _: None)
    for _ in range(25):
        time.sleep(0.1)
        dog.beat()
    dog.stop()
    dog.waited_s = 3.0
    assert not bitten.wait(0.5)


def test_time_in_which_the_process_stood_still_does_not_count(monkeypatch):
    """As after `scontrol suspend` and `resume`: the clock has gone on by an hour in one tick."""
    bitten = threading.Event()
    hours, real = iter([0.0, 3600.0]), time.monotonic
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: real() + next(hours, 3600.0))
    dog = Watchdog()
    dog.start(0.5, bitten.set, lambda _: None)
    assert not bitten.wait(0.2)
    assert bitten.wait(5.0)


def test_a_rank_that_is_ended_says_so(tmp_path):
    RunDir(tmp_path).ranks.mkdir()
    me = Process.of(os.getpid())
    assert me
    for rank in (0, 1):
        RankRecord(rank, me).write(tmp_path)
    for rank in (1, 0):
        code = (
            "import sys, threading; from pathlib import Path; from pat.training.watchdog import end_rank\n"
            "inside = threading.Event()\n"
            f"def bite(): inside.wait(); end_rank(Path(sys.argv[1]), {rank}, 0.5)\n"
            "threading.Thread(target=bite).start()\n"
            "def stuck(): inside.set(); threading.Event().wait()\n"
            "stuck()\n"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and "in stuck" in done.stderr, "the log shows where the main thread is"
        assert f"rank {rank}: nothing has happened for 0.5 minutes (engine.timeout_min)" in done.stdout
        assert rank_records(tmp_path)[rank].code == 1
        assert (read_exit(tmp_path) is None) == (rank == 1)


def test_a_rank_leaves_though_nobody_reads_what_it_says(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from pat.training import watchdog\n"
        "watchdog.WORDS_S = 0.5\n"
        "os.set_blocking(1, False)\n"
        "try:\n"
        "    while True: os.write(1, b'.' * 4096)\n"
        "except BlockingIOError: os.set_blocking(1, True)\n"
        "watchdog.end_rank(Path(sys.argv[1]), 0, 0.5)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as rank:
        try:
            assert rank.wait(60) == 1
        finally:
            rank.kill()
    assert "nothing has happened" in (read_exit(tmp_path) or {})["message"], "whoever asks later learns it"


def test_a_bark_that_nobody_reads_does_not_keep_it_from_biting():
    bitten, dog = threading.Event(), Watchdog()
    dog.start(0.3, bitten.set, lambda _: threading.Event().wait(60.0))
    assert bitten.wait(20.0)
