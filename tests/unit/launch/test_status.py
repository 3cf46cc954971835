"""What `pat status` and `pat logs` make of a run directory."""

from __future__ import annotations

import contextlib
import io
import json
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from pat import cli
from pat.common.files import write_json
from pat.launch import logs, single_node, slurm, status
from pat.launch.process import Process, RankRecord, forget_ranks_from, only_user_of, said_by_first
from pat.run import provenance
from pat.run.directory import RunDir, write_exit
from pat.sweeps import on_slurm


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run that has begun on this machine, and has died."""
    monkeypatch.setattr("pat.launch.slurm.shutil.which", lambda _: None)
    directory = RunDir(tmp_path / "run")
    directory.ranks.mkdir(parents=True)
    directory.logs.mkdir()
    directory.config.write_text("train:\n  num_steps: 30\n")
    lines: list[dict[str, object]] = [
        {"step": step, "time": 1000.0 + step, "pruning/phase": "soft", "pruning/sparsity": step / 100}
        for step in range(1, 4000)
    ]
    lines.append({"step": 4000, "time": 5000.5, "checkpoint/seconds": 1.0})
    directory.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4001, "ti')
    provenance.record(directory.path, 2)
    provenance.record(directory.path, 2)
    RankRecord(0, Process(2**22 + 1, 1)).write(directory.path)
    return directory


def test_of_a_dead_run(run):
    found = status.status(run.path)
    assert (found.state, found.step, found.num_steps, found.phase) == ("died", 4000, 30, "soft")
    assert (found.sparsity, found.restarts, found.updated) == (39.99, 1, 5000.5)


def test_long_names_of_a_sweeps_members_take_no_room_of_their_state(run, tmp_path, capsys, monkeypatch):
    """In a pipe a run is a line; on a terminal its name is folded."""
    long = RunDir(tmp_path / ("pruners.weights.criterion.name=magnitude,seed=0" * 5))
    run.path.rename(long.path)
    with pytest.raises(SystemExit):
        cli.main(["status", str(long.path)])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "died" in line)
    assert line.split()[0] == str(long.path) and "4000/30" in line and "soft" in line
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    with pytest.raises(SystemExit):
        cli.main(["status", str(long.path)])
    _, *shown = capsys.readouterr().out.splitlines()
    assert len(shown) > 3 and max(map(len, shown)) <= 80 and "died" in shown[0] and "4000/30" in shown[0]


def test_a_cut_that_goes_on_is_told_by_its_layers_and_one_that_has_ended_is_not(run):
    """Would catch: `dense` for the hours of a cut before the first step, and a cut whose journal waits for a save."""
    for step, layers in ((200, 3), (4000, 2)):
        folder = run.calibration / f"weights-step-{step:08d}"
        folder.mkdir(parents=True)
        for layer in range(layers):
            (folder / f"layer-{layer:05d}.safetensors").touch()
    assert status.status(run.path).phase == "cut, 2 layers"
    with run.metrics.open("a") as file:
        file.write('\n{"step": 4000, "calibration/seconds": 9.5}\n')
    assert status.status(run.path).phase == "soft"


def test_a_misspelt_run_is_named_with_the_one_beside_it(run, capsys, monkeypatch):
    monkeypatch.chdir(run.path.parent)
    for command in (["status", "rnu"], ["logs", "rnu"], ["export", "rnu", "--out", "out"], ["evaluate", "rnu"]):
        with pytest.raises(SystemExit):
            cli.main(command)
        said = capsys.readouterr().err
        assert "rnu" in said and said.endswith("; did you mean run?\n"), command


def test_states(run, tmp_path):
    me = Process.of(os.getpid())
    assert me
    write_exit(run.path, 85, "saved")
    time.sleep(0.05)  # times of files may be some milliseconds old
    with only_user_of(run.path):
        assert status.status(run.path).state == "starting", "again, and its ranks are not there yet"
        run.exit.unlink()
        forget_ranks_from(run.path, 0)
        assert status.status(run.path).state == "starting"
        RankRecord(1, Process(1, 1, "elsewhere")).write(run.path)
        assert status.status(run.path).state == "running", "all ranks are on other machines, and it waits for them"
        write_exit(run.path, 85, "saved")
        assert status.status(run.path).state == "preempted", "it has just ended"
        run.exit.unlink()
    assert status.status(run.path).state == "unknown, last on elsewhere", "the lock's file stays"
    RankRecord(0, Process(2**22 + 1, 1)).write(run.path)
    assert status.status(run.path).state == "unknown, last on elsewhere"
    assert status.status(run.path, "RUNNING").state == "running"
    assert status.status(run.path, "NODE_FAIL").state == "job node_fail"
    RankRecord(0, me).write(run.path)
    assert status.status(run.path).state == "running"
    write_exit(run.path, 85, "saved")
    assert status.status(run.path).state == "preempted"
    assert status.status(run.path, "PENDING").state == "preempted, job pending"
    write_exit(run.path, 0)
    assert status.status(run.path, "COMPLETED").state == "done"
    new = RunDir(tmp_path / "new")
    new.path.mkdir()
    new.config.write_text("{torn")
    found = status.status(new.path)
    assert (found.state, found.step, found.num_steps, found.updated) == ("not started", 0, None, None)


def test_the_table(run, capsys, monkeypatch):
    with pytest.raises(SystemExit) as left:
        cli.main(["status", str(run.path)])
    assert left.value.code == 0
    title, row = capsys.readouterr().out.splitlines()
    assert title.split() == ["run", "state", "step", "phase", "sparsity", "restarts", "updated"]
    assert row.split()[:8] == [str(run.path), "died", "4000/30", "soft", "39.990", "at", "3999", "1"]
    monkeypatch.chdir(run.path)
    for arguments, words in (
        (["status"], "none in ./sweeps"),
        (["status", "."], ". is not a run directory (it has no config.yaml)"),
    ):
        run.config.unlink(missing_ok=True)
        with pytest.raises(SystemExit) as left:
            cli.main(arguments)
        assert left.value.code == 2 and words in capsys.readouterr().err


def test_ago():
    assert [status.ago(1000.0 - s, 1000.0) for s in (0, 119, 120, 7199, 7200, 200000)] == [
        "0 s ago", "119 s ago", "2 min ago", "119 min ago", "2 h ago", "2 d ago",
    ]  # fmt: skip
    assert status.ago(None) == "-"


def test_logs(run, capsys):
    run.log(0).write_text("one\ntwo\nthree\n")
    (run.logs / "slurm-7.log").write_text("old\n")
    os.utime(run.logs / "slurm-7.log", (1, 1))
    (run.logs / "slurm-12.log").write_text("new\n")
    for arguments, out in (
        ([], "one\ntwo\nthree\n"),
        (["--lines", "2"], "two\nthree\n"),
        (["--lines", "0"], ""),
        (["--job"], "new\n"),
        (["--rank", "0", "--follow"], "one\ntwo\nthree\n"),  # nobody writes: it ends
    ):
        with pytest.raises(SystemExit) as left:
            cli.main(["logs", str(run.path), *arguments])
        assert left.value.code == 0 and capsys.readouterr().out == out
    with pytest.raises(SystemExit) as left:
        cli.main(["logs", str(run.path), "--rank", "3"])
    assert left.value.code == 2 and "has no log of rank 3: ranks 0 to 0 have one" in capsys.readouterr().err


def test_follow_sees_what_is_written_until_the_end(run):
    me = Process.of(os.getpid())
    assert me
    RankRecord(0, me).write(run.path)
    run.log(0).write_text("one\n")
    out = io.StringIO()
    text, position = logs.last_lines(run.log(0), None)
    reader = threading.Thread(target=logs.follow, args=(run.path, run.log(0), position, out, 0.01), daemon=True)
    reader.start()
    with open(run.log(0), "a") as file:
        file.write("two\n")
    end = time.monotonic() + 20
    while "two" not in out.getvalue() and time.monotonic() < end:
        time.sleep(0.01)
    assert reader.is_alive() and out.getvalue() == "two\n"
    with open(run.log(0), "a") as file:
        file.write("last\n")
    RankRecord(0, Process(2**22 + 1, 1), code=0).write(run.path)
    reader.join(20)
    assert not reader.is_alive() and out.getvalue() == "two\nlast\n" and text == "one\n"


def test_follow_asks_slurm_now_and_then_only(run, monkeypatch):
    """Fails if everybody who follows a log asks the controller of the whole cluster twice a second."""
    write_json(run.job, {"job_id": "7"})
    run.log(0).write_text("")
    clock, asked = [0.0], list[float]()

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        with open(run.log(0), "a") as file:
            file.write(f"{clock[0]:g}\n")

    def states(jobs: list[str]) -> dict[str, str]:
        asked.append(clock[0])
        return dict.fromkeys(jobs, "RUNNING" if clock[0] < 40 else "COMPLETED")

    monkeypatch.setattr(logs, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    monkeypatch.setattr(slurm, "states", states)
    out = io.StringIO()
    logs.follow(run.path, run.log(0), 0, out)
    assert asked == [0.0, 15.0, 30.0, 45.0]
    assert out.getvalue() == run.log(0).read_text(), "what is written meanwhile is shown at once, and to the end"


def test_a_controller_that_does_not_answer_has_not_forgotten_the_job(run, tmp_path, monkeypatch):
    """Else a sweep would call a job failed that runs on while the controller restarts."""
    squeue = tmp_path / "squeue"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("pat.launch.slurm.shutil.which", lambda _: str(squeue))
    for said, known in (
        ("echo RUNNING", "RUNNING"),
        ("echo slurm_load_jobs error: Invalid job id specified >&2; exit 1", slurm.FORGOTTEN),
        ("echo slurm_load_jobs error: Unable to contact slurm controller >&2; exit 1", slurm.SILENT),
        ("exec sleep 5", slurm.SILENT),
    ):
        squeue.write_text(f"#!/bin/sh\n{said}\n")
        squeue.chmod(0o755)
        monkeypatch.setattr(slurm, "ANSWER_S", 0.2 if "sleep" in said else 30.0)
        assert slurm.states(["7"]).get("7") == known
    assert status.status(run.path, slurm.SILENT).state == "unknown, Slurm does not answer"
    assert on_slurm.Job(run, "7").poll() is None


@pytest.mark.parametrize(
    "said, job, quiet_s, ends, state",
    [
        ("echo Invalid job id specified >&2; exit 1", "7", 1000, True, "died"),
        ("echo Invalid job id specified >&2; exit 1", "7", 100, False, "unknown, last on n9"),
        ("echo Invalid job id specified >&2; exit 1", "", 1000, False, "unknown, last on n9"),
        ("echo CLUSTER: beta", "7", 1000, True, "died"),
        ("echo CLUSTER: beta; echo RUNNING", "7", 1000, False, "running"),
        ("echo Unable to contact slurm controller >&2; exit 1", "7", 1000, False, "unknown, Slurm does not answer"),
    ],
)
def test_a_job_that_slurm_has_forgotten_is_over_on_whatever_machine(
    run, tmp_path, monkeypatch, said, job, quiet_s, ends, state
):
    """Fails if `pat logs --follow` waits for ever for a job whose machine is not this one. Ranks of another start there
    are not the job's, and those that still log may be on another cluster."""
    squeue = tmp_path / "squeue"
    squeue.write_text(f"#!/bin/sh\n{said}\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("pat.launch.slurm.shutil.which", lambda _: str(squeue))
    write_json(run.job, {"job_id": "7", "restarts": 0, "nodes": "n9"})
    RankRecord(0, Process(5, 9, "n9"), job=job).write(run.path)
    run.log(0).write_text("x\n")
    os.utime(run.log(0), (time.time() - quiet_s,) * 2)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        raise TimeoutError

    monkeypatch.setattr(logs, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    with contextlib.suppress(TimeoutError):
        logs.follow(run.path, run.log(0), 0, io.StringIO())
    assert bool(waits) is not ends
    assert status.statuses([run.path])[0].state == state


def test_other_ranks_hear_of_a_first_that_has_refused(tmp_path: Path) -> None:
    """Not of one that works, nor of what an earlier start has left."""
    now, me = 5_000.0, Process(1, 1, "n1")
    RunDir(tmp_path).ranks.mkdir()
    assert said_by_first(tmp_path, now) is None
    RankRecord(0, me).write(tmp_path)
    assert said_by_first(tmp_path, now) is None
    RankRecord(0, me, code=2, message="another config", time=now - 3600.0).write(tmp_path)
    assert said_by_first(tmp_path, now) is None
    RankRecord(0, me, code=2, message="another config", time=now - 5.0).write(tmp_path)
    assert said_by_first(tmp_path, now) == "another config"


def test_ranks_that_are_to_compute_on_the_cpu_need_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert single_node._devices(2) == [0, 1]
    monkeypatch.delenv("DS_ACCELERATOR")
    with pytest.raises(ValueError, match="this machine shows 1 GPUs"):
        single_node._devices(2)
