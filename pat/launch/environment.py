"""Which rank this process is, of how many, and where they meet: as torchrun, deepspeed, srun or mpirun tell it."""

from __future__ import annotations

import os
import random
import re
import socket
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from pat.run.directory import HOST


@dataclass(frozen=True)
class RankEnvironment:
    """Which rank this process is, as its launcher told it."""

    rank: int
    world_size: int
    local_rank: int
    master_addr: str
    master_port: int
    launcher: str  # torch (deepspeed, torchrun or alike) | slurm | openmpi

    def export(self) -> None:
        """Set the variables that torch.distributed and DeepSpeed read."""
        os.environ.update(
            RANK=str(self.rank),
            WORLD_SIZE=str(self.world_size),
            LOCAL_RANK=str(self.local_rank),
            MASTER_ADDR=self.master_addr,
            MASTER_PORT=str(self.master_port),
        )


# The name of a launcher of one task per rank, and the variables that it sets.
_NAMES = {
    "slurm": ("srun", "SLURM_PROCID and SLURM_NTASKS"),
    "openmpi": ("mpirun", "OMPI_COMM_WORLD_RANK and OMPI_COMM_WORLD_SIZE"),
}


def rank_environment(environ: Mapping[str, str] | None = None) -> RankEnvironment | None:
    """The rank that deepspeed, torchrun, mpirun or srun made of this process; None in a plain shell."""
    env = os.environ if environ is None else environ
    task = _openmpi_environment(env) or _slurm_environment(env)  # mpirun in a Slurm job has srun start its daemons
    if "RANK" not in env and "WORLD_SIZE" not in env:
        return task
    missing = [key for key in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if key not in env]
    if missing:
        raise ValueError(
            f"{' and '.join(missing)} not set although {'RANK' if 'RANK' in env else 'WORLD_SIZE'} is: "
            "unset RANK and WORLD_SIZE to start the ranks from here, or start with deepspeed, torchrun or srun"
        )
    rank, size = _position(env, "RANK", "WORLD_SIZE")
    one_per_task = "TORCHELASTIC_RUN_ID" not in env and "CROSS_RANK" not in env
    if task and one_per_task and (rank, size) != (task.rank, task.world_size):
        command, variables = _NAMES[task.launcher]
        raise ValueError(
            f"RANK={rank} and WORLD_SIZE={size} contradict {command}, which made this task {task.rank} of "
            f"{task.world_size}: unset RANK and WORLD_SIZE, or set them from {variables}"
        )
    local = _number(env, "LOCAL_RANK") if "LOCAL_RANK" in env else task.local_rank if task else _local(env, rank)
    if "LOCAL_WORLD_SIZE" in env and "LOCAL_RANK" in env:
        _position(env, "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return RankEnvironment(rank, size, local, env["MASTER_ADDR"], _number(env, "MASTER_PORT"), "torch")


def _local(env: Mapping[str, str], rank: int) -> int:
    """The rank on its machine where the launcher does not say it, as those of one process a container do not."""
    if _one_device(env):
        return 0
    return rank % _number(env, "LOCAL_WORLD_SIZE") if env.get("LOCAL_WORLD_SIZE", "0") != "0" else rank


def _one_device(env: Mapping[str, str]) -> bool:
    visible = env.get("CUDA_VISIBLE_DEVICES", "")
    return bool(visible) and "," not in visible


def _slurm_environment(env: Mapping[str, str]) -> RankEnvironment | None:
    if "SLURM_PROCID" not in env or "SLURM_STEP_ID" not in env:
        return None  # an sbatch script itself has no step
    rank, size = _position(
        env, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
    )
    if size < 2:
        return None
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or HOST
    job, step = _number(env, "SLURM_JOB_ID"), _number(env, "SLURM_STEP_ID")
    alone = _one_device(env)  # srun --gpus-per-task=1: each task's only GPU is its number 0
    return RankEnvironment(
        rank=rank,
        world_size=size,
        local_rank=0 if alone else _number(env, "SLURM_LOCALID"),
        master_addr=env.get("MASTER_ADDR") or first_host(nodes),
        master_port=int(env.get("MASTER_PORT") or _port(f"{job}.{step}")),
        launcher="slurm",
    )


def _openmpi_environment(env: Mapping[str, str]) -> RankEnvironment | None:
    if "OMPI_COMM_WORLD_RANK" not in env:
        return None
    rank, size = _position(env, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")
    if size < 2:
        return None
    one_machine = env.get("OMPI_COMM_WORLD_LOCAL_SIZE") == env["OMPI_COMM_WORLD_SIZE"]
    address = env.get("MASTER_ADDR") or ("127.0.0.1" if one_machine else first_host(env.get("SLURM_JOB_NODELIST", "")))
    if not address:
        raise ValueError(
            "mpirun does not tell the ranks where rank 0 is: add `-x MASTER_ADDR=HOST`, with rank 0's machine"
        )
    job = env.get("PMIX_NAMESPACE", "")  # the same on every rank of one mpirun
    return RankEnvironment(
        rank=rank,
        world_size=size,
        local_rank=0 if _one_device(env) else _number(env, "OMPI_COMM_WORLD_LOCAL_RANK"),
        master_addr=address,
        master_port=int(env.get("MASTER_PORT") or _port(job)),
        launcher="openmpi",
    )


PORTS = range(18000, 32000)  # below those that the system gives to any connection, while ranks are still starting


def _port(job: str) -> int:
    """Where the ranks of a job meet: all of them compute the same port, and jobs that share a machine hardly ever
    do."""
    return PORTS[zlib.crc32(job.encode()) % len(PORTS)]


def free_port() -> int:
    """A port on which nobody listens here. Until this process ends no other call takes it, in any process: ranks may
    take half a minute to begin to listen. OSError where there is none."""
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        probe = socket.socket()
        try:
            probe.bind(("", port))
        except OSError:
            probe.close()
            continue
        # Who sets the same, as torch's store does, may still listen there; a plain bind, as above, is refused.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.detach()  # stays open until this process ends
        return port
    raise OSError(f"no free port among {PORTS.start} to {PORTS.stop - 1}: set MASTER_PORT")


def _position(env: Mapping[str, str], rank_key: str, size_key: str) -> tuple[int, int]:
    """(rank, size), after checking that they fit each other."""
    rank, size = _number(env, rank_key), _number(env, size_key)
    if not 0 <= rank < size:
        raise ValueError(f"{rank_key}={rank} does not fit {size_key}={size}: ranks count from 0 to {size - 1}")
    return rank, size


def first_host(nodes: str) -> str:
    """First host of a Slurm node list: `gpu[07-09,12],n1` -> `gpu07`; `rack[0-1]node[2-3]` -> `rack0node2`."""
    return re.sub(r"\[(\w+)[^]]*\]", r"\1", nodes).split(",")[0]


def _number(env: Mapping[str, str], key: str) -> int:
    try:
        return int(env[key])
    except (KeyError, ValueError):
        raise ValueError(f"{key}={env.get(key)!r} is not a whole number: the launcher must set it") from None
