"""Which rank a process is, by what each launcher sets."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from pat.common.machine import usable_cores
from pat.launch import environment
from pat.launch.environment import PORTS, RankEnvironment, first_host, free_port, rank_environment
from pat.launch.single_node import _threads

TORCH = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "29500"}
SLURM = {
    "SLURM_PROCID": "3",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "gpu[07-09,12]",
}
MPI = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "PMIX_NAMESPACE": "prterun-vm-8@1",
}


def test_a_plain_shell_is_no_rank():
    assert rank_environment({}) is None
    # The script of an sbatch job, an interactive step and a single task start the ranks themselves.
    assert rank_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"}) is None
    assert rank_environment(SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None


def test_rank_of_torchrun_and_deepspeed():
    assert rank_environment(TORCH) == RankEnvironment(1, 4, 1, "n1", 29500, "torch")


def test_rank_of_srun():
    found = rank_environment(SLURM)
    assert found and (found.rank, found.world_size, found.local_rank, found.master_addr) == (3, 4, 1, "gpu07")
    other_task = rank_environment(SLURM | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"})
    assert other_task and other_task.master_port == found.master_port
    jobs = [rank_environment(SLURM | {"SLURM_JOB_ID": str(job)}) for job in range(77, 1077)]
    assert len({job.master_port for job in jobs if job}) > 950, "jobs that share a machine meet at ports of their own"
    assert rank_environment(SLURM | {"MASTER_ADDR": "head", "MASTER_PORT": "5"}) == RankEnvironment(
        3, 4, 1, "head", 5, "slurm"
    )


def test_a_task_that_sees_one_gpu_takes_that():
    """srun --gpus-per-task=1: the second task's GPU is its number 0, and there is no number 1."""
    for visible, local in (("3", 0), ("0,1", 1), ("", 1)):
        found = rank_environment(SLURM | {"CUDA_VISIBLE_DEVICES": visible})
        assert found and found.local_rank == local, visible


def test_threads_are_slurms_only_where_its_tasks_are_the_ranks():
    """Fails if 8 ranks that `pat train` starts in one task of 32 cores have 32 threads each."""
    cores = usable_cores()
    one_task = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_CPUS_PER_TASK": "32", "SLURM_STEP_TASKS_PER_NODE": "1"}
    assert _threads(one_task, 2) == max(1, cores // 2)
    assert _threads(SLURM | {"SLURM_CPUS_PER_TASK": "7"}, 2) == 7


def test_rank_of_mpirun():
    assert rank_environment(MPI | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}) is None
    found = rank_environment(MPI)
    assert found and (found.rank, found.world_size, found.local_rank, found.launcher) == (2, 4, 1, "openmpi")
    alone = rank_environment(MPI | {"CUDA_VISIBLE_DEVICES": "1"})
    assert alone and (alone.rank, alone.local_rank) == (2, 0), "a task's only GPU is its number 0"
    assert found.master_addr == "127.0.0.1", "all ranks are on this machine"
    other = rank_environment(MPI | {"PMIX_NAMESPACE": "prterun-vm-9@1"})
    assert other and other.master_port != found.master_port
    # In a Slurm job, srun has started mpirun's daemons, one a node: their task numbers say nothing of the rank.
    spread = MPI | SLURM | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "SLURM_JOB_NODELIST": "gpu[03-04]"}
    found = rank_environment(spread)
    assert found and (found.rank, found.master_addr, found.launcher) == (2, "gpu03", "openmpi")
    given = rank_environment(MPI | TORCH | {"RANK": "2"})
    assert given and (given.rank, given.master_addr, given.launcher) == (2, "n1", "torch")


def test_a_rank_whose_launcher_does_not_say_its_place_on_the_machine():
    """Fails if the second of two containers with a card each looks for a second card."""
    plain = {key: value for key, value in TORCH.items() if key != "LOCAL_RANK"} | {"RANK": "3"}
    for more, local in (({}, 3), ({"CUDA_VISIBLE_DEVICES": "0"}, 0), ({"LOCAL_WORLD_SIZE": "2"}, 1)):
        found = rank_environment(plain | more)
        assert found and found.local_rank == local, more


def test_torchrun_or_deepspeed_started_by_srun_decides():
    for mark in ("TORCHELASTIC_RUN_ID", "CROSS_RANK"):
        found = rank_environment(SLURM | TORCH | {mark: "1"})
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
        (SLURM | {"SLURM_PROCID": "4"}, "SLURM_PROCID=4 does not fit SLURM_STEP_NUM_TASKS=4"),
        (TORCH | {"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "2"}, "LOCAL_RANK=2 does not fit LOCAL_WORLD_SIZE=2"),
        (MPI | TORCH, "contradict mpirun, which made this task 2 of 4: .*OMPI_COMM_WORLD_RANK"),
        (MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, "mpirun does not tell the ranks where rank 0 is"),
    ],
)
def test_contradictions_are_one_sentence(environ, words):
    with pytest.raises(ValueError, match=words):
        rank_environment(environ)


@pytest.mark.parametrize(
    "nodes, first",
    [
        ("n1", "n1"),
        ("n[1-3]", "n1"),
        ("gpu[07-09,12],n1", "gpu07"),
        ("a,b[1-2]", "a"),
        ("r1-[3,5]-ib", "r1-3-ib"),
        ("rack[0-1]node[2-3]", "rack0node2"),
    ],
)
def test_first_host(nodes, first):
    assert first_host(nodes) == first


def bound(taken: socket.socket, port: int) -> bool:
    """Whether nobody has this port, so that it is bound to an address of its own now."""
    try:
        with socket.socket() as probe:
            probe.bind(("", port))
        taken.bind(("127.0.0.9", port))
    except OSError:
        return False
    return True


def test_a_free_port_is_one_that_no_connection_gets_before_rank_0_listens(monkeypatch):
    """Catches a port that is free now and the local end of another program's connection seconds later."""
    first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert free_port() < min(first_ephemeral, 32768)
    port, none = free_port(), "no free port among {0} to {0}: set MASTER_PORT"
    monkeypatch.setattr(environment, "PORTS", range(port, port + 1))
    with pytest.raises(OSError, match=none.format(port)):  # nobody listens yet, but it is taken
        free_port()
    store = TCPStore("127.0.0.1", port, 1, is_master=True)  # as rank 0 does
    store.set("a", "b")
    with socket.socket() as taken:  # by another program, on an address of its own
        other = next(each for each in PORTS if bound(taken, each))
        monkeypatch.setattr(environment, "PORTS", range(other, other + 1))
        taken.listen()
        with pytest.raises(OSError, match=none.format(other)):
            free_port()
