import json
import os
import signal
import subprocess
import sys

import pytest

from pat import run
from pat.process import Process, RankRecord, rank_records
from pat.run import ExitCode, RunDir

TORCH = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "29500"}
SLURM = {
    "SLURM_PROCID": "3",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "gpu[07-09,12]",
}


def test_a_plain_shell_is_no_rank():
    assert run.rank_environment({}) is None
    # The script of an sbatch job, an interactive step and a single task start the ranks themselves.
    assert run.rank_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"}) is None
    assert run.rank_environment(SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None


def test_rank_of_torchrun_and_deepspeed():
    assert run.rank_environment(TORCH) == run.RankEnvironment(1, 4, 1, "n1", 29500, "torch")


def test_rank_of_srun():
    found = run.rank_environment(SLURM)
    assert found and (found.rank, found.world_size, found.local_rank, found.master_addr) == (3, 4, 1, "gpu07")
    other_task = run.rank_environment(SLURM | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"})
    assert other_task and other_task.master_port == found.master_port
    other_job = run.rank_environment(SLURM | {"SLURM_JOB_ID": "78"})
    assert other_job and other_job.master_port != found.master_port
    assert run.rank_environment(SLURM | {"MASTER_ADDR": "head", "MASTER_PORT": "5"}) == run.RankEnvironment(
        3, 4, 1, "head", 5, "slurm"
    )


def test_torchrun_or_deepspeed_started_by_srun_decides():
    for mark in ("TORCHELASTIC_RUN_ID", "CROSS_RANK"):
        found = run.rank_environment(SLURM | TORCH | {mark: "1"})
        assert found and found.rank == 1


@pytest.mark.parametrize(
    "environ, words",
    [
        ({"RANK": "0"}, "WORLD_SIZE and MASTER_ADDR and MASTER_PORT not set although RANK is"),
        ({"WORLD_SIZE": "2"}, "RANK and MASTER_ADDR"),
        (TORCH | {"RANK": "4"}, "RANK=4 does not fit WORLD_SIZE=4"),
        (TORCH | {"RANK": "one"}, "RANK='one' is not a whole number"),
        (SLURM | TORCH, "contradict srun, which made this task 3 of 4"),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "x"}, "not a whole number"),
    ],
)
def test_contradictions_are_one_sentence(environ, words):
    with pytest.raises(ValueError, match=words):
        run.rank_environment(environ)


@pytest.mark.parametrize(
    "nodes, first",
    [("n1", "n1"), ("n[1-3]", "n1"), ("gpu[07-09,12],n1", "gpu07"), ("a,b[1-2]", "a"), ("r1-[3,5]-ib", "r1-3-ib")],
)
def test_first_host(nodes, first):
    assert run.first_host(nodes) == first


def test_write_atomic_replaces_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    run.write_atomic(path, "old")
    run.write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        run.write_atomic(path, "newer")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_exit_file(tmp_path):
    assert run.read_exit(tmp_path) is None
    run.write_exit(tmp_path, 85, "saved")
    found = run.read_exit(tmp_path)
    assert found and (found["code"], found["meaning"], found["message"]) == (85, "preempted", "saved")
    RunDir(tmp_path).exit.write_text("{torn")
    assert run.read_exit(tmp_path) is None


def test_the_flag_is_set_by_signals_and_by_nothing_else():
    code = (
        "import os, signal, sys\n"
        "from pat import run\n"
        "flag = run.preemption_flag()\n"
        "assert run.preemption_flag() is flag and not flag.requested\n"
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


def test_versions_name_the_code(tmp_path):
    found = run.versions()
    assert {"pat", "torch", "deepspeed", "transformers"} <= found.keys()
    json.dumps(found)


def test_seeds_repeat():
    import numpy
    import torch

    draws = []
    for _ in range(2):
        run.seed_everything(2**33 + 1)
        draws.append((torch.rand(3).tolist(), numpy.random.rand(3).tolist()))
    assert draws[0] == draws[1]


def test_exit_codes_are_documented():
    from pat.usage import EXIT_CODES

    for code in ExitCode:
        assert f"\n  {code.value:<4} " in EXIT_CODES
