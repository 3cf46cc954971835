"""Start the ranks of one machine through DeepSpeed's launcher: the environment they need, the command that starts them.

`pat.launch.supervisor` watches them afterwards; `pat.launch.multi_node` starts those of several machines.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pat
from pat.common.extensions import extensions_dir
from pat.common.machine import usable_cores
from pat.launch import process
from pat.launch.environment import free_port, rank_environment
from pat.launch.supervisor import Supervisor
from pat.run.directory import RunDir
from pat.schema import Config


def launch(run_dir: Path, config: Config, rank_program: Sequence[str] = ("--module", "pat.worker")) -> int:
    """Run all ranks of a run, whose directory the caller holds, on this machine; returns the run's exit code."""
    RunDir(run_dir).exit.unlink(missing_ok=True)
    command = deepspeed_command({"localhost": _devices(config.engine.world_size)}, "127.0.0.1", free_port())
    with ranks_here(rank_variables(config), [*command, *rank_program, str(run_dir)]) as launcher:
        return Supervisor(run_dir, launcher).until_all_have_left()


@contextlib.contextmanager
def ranks_here(environment: dict[str, str], command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """DeepSpeed's launcher of this machine's ranks, in a process group of its own, which ends with this process."""
    directory = Path(environment["TORCH_EXTENSIONS_DIR"])
    if environment.get("DS_ACCELERATOR") == "cpu" and not list(directory.glob("**/deepspeed_shm_comm.so")):
        print(f"building DeepSpeed's CPU communication op, once, in {directory} (about a minute)", flush=True)
    yield subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=process.die_with_parent(signal.SIGKILL),
    )


def rank_variables(config: Config) -> dict[str, str]:
    """The environment of a rank: accelerator, threads, where compiled extensions go."""
    environment = dict(os.environ)
    engine = config.engine
    if "DS_ACCELERATOR" not in environment:
        import torch

        environment |= {} if torch.cuda.is_available() else {"DS_ACCELERATOR": "cpu"}
    if engine.threads_per_rank:
        environment["OMP_NUM_THREADS"] = str(engine.threads_per_rank)
    environment.setdefault("OMP_NUM_THREADS", str(_threads(environment, engine.world_size)))
    environment.setdefault("TORCH_EXTENSIONS_DIR", str(extensions_dir(environment)))
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    return environment | package_variables(environment)


def package_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Ranks run the package that runs here, not a folder called `pat` in the current directory."""
    root = Path(pat.__file__).resolve().parent.parent
    if root.name in ("site-packages", "dist-packages"):
        return {"PYTHONSAFEPATH": "1"}
    path = [item for item in environment.get("PYTHONPATH", "").split(os.pathsep) if item not in ("", str(root))]
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join([str(root), *path])}


def _threads(environment: Mapping[str, str], world_size: int) -> int:
    """Cores of this machine / ranks on it, by the launcher's own numbers where it gives them. Slurm's are of its tasks,
    which are ranks only where srun starts them."""
    started, tasks = rank_environment(environment), ""
    if started is not None and started.launcher == "slurm":
        if "SLURM_CPUS_PER_TASK" in environment:
            return int(environment["SLURM_CPUS_PER_TASK"])
        tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0].partition(",")[0]  # `8(x2),4`
    said = (environment.get(key) for key in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"))
    ranks = next(filter(None, said), tasks or world_size)
    return max(1, usable_cores() // int(ranks))


def _devices(count: int) -> list[int | str]:
    """The accelerators of this machine that its ranks get."""
    import torch

    from pat.zero.engine import accelerator

    if accelerator() == "cpu":
        return list(range(count))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    here = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    if count > len(here):
        raise ValueError(
            f"engine.world_size={count} but this machine shows {len(here)} GPUs: set at most {len(here)}, name several "
            "machines with engine.hostfile, or start `pat train` there with deepspeed, torchrun or srun"
        )
    return [int(name) if name.strip().isdigit() else name for name in here[:count]]


def deepspeed_command(hosts: Mapping[str, Sequence[int | str]], address: str, port: int, node: int = 0) -> list[str]:
    """DeepSpeed's launcher of one machine's ranks, `node` of those in `hosts` (name -> accelerators). Its front end
    (`deepspeed`) would do the same after a second import, but ignores CUDA_VISIBLE_DEVICES when told how many ranks to
    start, and on several hosts answers a signal with `pkill -f`."""
    world = base64.urlsafe_b64encode(json.dumps(dict(hosts)).encode()).decode()
    options = [f"--world_info={world}", f"--node_rank={node}", f"--master_addr={address}", f"--master_port={port}"]
    options += ["--no_local_rank", "--log_level=critical"]
    return [sys.executable, "-u", "-m", "pat.zero.launcher", *options]
