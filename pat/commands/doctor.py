"""Whether what pat promises holds on this machine: a few minutes of real ranks."""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from pat.commands._help import command_parser, exit_codes
from pat.common import files
from pat.launch.environment import RankEnvironment, rank_environment
from pat.run.directory import ExitCode

EXAMPLES = """\
examples:
  pat doctor                                two ranks, on GPUs where there are some
  pat doctor --ranks 8 --dir /scratch/me    all GPUs of a node, and the file system that runs will be on
  pat doctor --device cpu --json doctor.json
  pat doctor recipe=NAME engine.kernels=compile    that run's model, kernels and engine, a few steps of each stage
  srun pat doctor --dir /shared             in an allocation, over all its nodes: also links and clocks
  torchrun --nproc-per-node 8 -m pat doctor --dir /shared

"""


def main(arguments: Sequence[str]) -> int:
    """`pat doctor`."""
    parser = command_parser(
        prog="pat doctor",
        description="Checks versions, devices, backend, compiler, disk and shared memory; then starts ranks that\n"
        "reduce, write, train a tiny model at ZeRO 1, 2 and 3 and go on from a checkpoint, and compares their bits.",
        epilog=EXAMPLES
        + exit_codes({ExitCode.BROKEN_PROMISE: "a promise does not hold here; a line with a cross says which"}),
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="keys of a run to try instead of the parity recipe"
    )
    parser.add_argument("--ranks", type=int, metavar="N", help="ranks to start on this machine (default: 2)")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="device of the ranks (default: auto)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings, too")
    parser.add_argument("--dir", type=Path, default=Path("runs"), metavar="DIR", help="where runs are (default: runs)")
    options = parser.parse_intermixed_args(arguments)
    if options.ranks is not None and options.ranks < 1:
        raise ValueError(f"--ranks {options.ranks}: give 1 or more")
    if options.json:
        files.check_writable(options.json, "--json")
    if environment := rank_environment():
        return _in_allocation(options, environment)
    ranks = 2 if options.ranks is None else options.ranks
    device = _device(options.device, ranks)
    began = time.monotonic()
    options.dir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="doctor-", dir=options.dir)).resolve()
    from rich.console import Console

    from pat.common.files import write_json
    from pat.doctor import as_json, broken, verdict
    from pat.doctor.machine import machine
    from pat.doctor.visit import configs, visit

    console, findings = Console(highlight=False), []
    try:
        configs(folder, ranks, options.overrides)  # a misspelt key is one before the kernels are compiled
        for check in itertools.chain(machine(device, ranks, folder), visit(folder, ranks, options.overrides)):
            findings.append(check())
            console.print(findings[-1].line(), soft_wrap=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    name = _card() if device == "cuda" else "cpu"
    seconds = time.monotonic() - began
    if options.json:
        write_json(options.json, as_json(findings, name, ranks, seconds=seconds))
    console.print(f"{verdict(findings, name, ranks)} ({seconds:.0f} s)", soft_wrap=True)
    if broken(findings):
        console.print(f"What the ranks left is in {folder}.", soft_wrap=True)
        return ExitCode.BROKEN_PROMISE
    shutil.rmtree(folder)
    return ExitCode.DONE


def _in_allocation(options: argparse.Namespace, environment: RankEnvironment) -> int:
    """Whether a launcher has started this process as one of several ranks."""
    if options.ranks is not None:
        raise ValueError(f"--ranks {options.ranks}, but the launcher started {environment.world_size}: leave it out")
    device = _device(options.device, 1)
    from pat.doctor.allocation import examine

    code = examine(options.dir, device, environment, options.overrides, options.json)
    sys.stdout.flush()
    os._exit(int(code))  # other ranks may have left


def _device(wanted: str, ranks: int) -> str:
    """The device, cpu or cuda; this process and its children see no other. ValueError for one that is not there."""
    if wanted == "cpu":
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}  # before torch looks
    import torch

    from pat.zero.engine import accelerator

    device = accelerator()
    if wanted == "cuda" and device != "cuda":
        raise ValueError(
            "--device cuda, but torch sees no GPU, or DS_ACCELERATOR=cpu forbids it: check nvidia-smi and torch's "
            "build, or take --device cpu"
        )
    if device == "cuda" and ranks > torch.cuda.device_count():
        raise ValueError(
            f"{ranks} ranks need {ranks} GPUs, and this machine shows {torch.cuda.device_count()}: give "
            f"--ranks {torch.cuda.device_count()}, or --device cpu"
        )
    return device


def _card() -> str:
    import torch

    return torch.cuda.get_device_name()
