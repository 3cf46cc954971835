"""The doctor inside an allocation: torchrun, srun or deepspeed have started its ranks, on all nodes.

Checks without ranks run once on every node. Then all ranks reduce, time the links, write, train at each ZeRO stage, and
go on from a checkpoint. Rank 0 reports the findings.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from pat.common.files import write_json
from pat.doctor import BROKEN, MIND, WELL, Finding, as_json, broken, network, ranks, verdict, visit
from pat.doctor.machine import machine
from pat.launch.environment import RankEnvironment
from pat.launch.process import rank_records
from pat.launch.rank import run_rank
from pat.launch.single_node import rank_variables
from pat.run.directory import ExitCode, write_exit

OTHERS_S = 30.0  # how long rank 0 waits for the others to leave
_WORST = (BROKEN, MIND, WELL)


def folder_of(parent: Path, environment: RankEnvironment) -> Path:
    """The folder of this start, which every rank finds without communication."""
    job, step = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_STEP_ID")
    name = f"{job}.{step}" if job and step else f"{environment.master_addr}-{environment.master_port}"
    return (parent / f"doctor-{name}").resolve()


def examine(
    parent: Path, device: str, environment: RankEnvironment, given: Sequence[str], json: Path | None
) -> ExitCode:
    """One rank of the doctor; all return the same code. Collective."""
    folder = folder_of(parent, environment)
    made = visit.configs(folder, environment.world_size, given)
    made = {stage: config.changed(run__resume="never") for stage, config in made.items()}
    for key, value in rank_variables(made[1]).items():
        os.environ.setdefault(key, value)
    environment.export()

    def work(folder: Path) -> int:
        began = time.monotonic()
        findings = list(_findings(folder, device, made))
        code: ExitCode = _from_first(ExitCode.BROKEN_PROMISE if broken(findings) else ExitCode.DONE)
        if dist.get_rank() == 0:
            _tell(findings, device, environment.world_size, time.monotonic() - began, json)
            write_exit(folder, code)
        return code

    code = run_rank(folder, environment.rank, work, announce=True)
    if environment.rank == 0 and code == ExitCode.DONE:
        _wait_for_others(folder)
        shutil.rmtree(folder, ignore_errors=True)
    return code


def _wait_for_others(folder: Path) -> None:
    """Until all ranks have recorded that they leave, which would make the folder again."""
    end = time.monotonic() + OTHERS_S
    while time.monotonic() < end and any(record.code is None for record in rank_records(folder)):
        time.sleep(0.05)


def _findings(folder: Path, device: str, made: Any) -> Iterator[Finding]:
    """The same on every rank. Collective."""
    from pat import train
    from pat.zero import engine

    engine.init_distributed(made[1])
    here, rank = ranks.own_device(), dist.get_rank()
    by_node = network.nodes()
    first = rank == by_node[network.node()][0]
    own = [check() for check in machine(device, len(by_node[network.node()]), folder)] if first else []
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, own)
    yield from over_nodes({name: every[members[0]] for name, members in by_node.items()})
    yield network.judge_clocks(_from_first(network.clocks(by_node)))
    yield network.judge_links(network.links(by_node, here))
    ranks.measure(folder, here)
    yield visit.judge_reductions(folder)
    said = ""
    if rank == 0:
        try:
            visit.make_ready(made, folder)
        except ValueError as error:  # the others wait
            said = str(error)
    if said := _from_first(said):
        raise ValueError(said)
    with _quiet():
        ranks.train_stages(folder)
    yield visit.judge_stages(folder)
    goes_on = rank == 0 and visit.results(ranks.stage_dir(folder, 2)) is not None
    if goes_on:
        visit.half_way(folder, made)
    if _from_first(goes_on):
        with _quiet():
            code = train.main(folder / "resumed")
        yield visit.judge_resume(folder, code, "in these processes")
    yield visit.judge_saving(folder)


def over_nodes(by_node: dict[str, list[Finding]]) -> list[Finding]:
    """A finding for each check: the worst state, in one sentence where all nodes say the same."""
    found = []
    for check in zip(*by_node.values(), strict=True):
        said = {name: one.said for name, one in zip(by_node, check, strict=True)}
        state = min((one.state for one in check), key=_WORST.index)
        alike = len(set(said.values())) == 1
        if check[0].check == "versions" and not alike:
            state = BROKEN
        text = check[0].said if alike else "; ".join(f"{name}: {one}" for name, one in said.items())
        nodes = f" (on each of {len(said)} nodes)" if alike and len(said) > 1 else ""
        figures = {name: one.figures for name, one in zip(by_node, check, strict=True)}
        found.append(replace(check[0], state=state, said=text + nodes, figures=figures))
    return found


def _from_first(value: Any) -> Any:
    """The value that rank 0 has. Collective."""
    every = [value]
    dist.broadcast_object_list(every, 0)
    return every[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Send the output of runs to this rank's log only."""
    kept = sys.stdout, sys.stderr
    sys.stdout = sys.stderr = getattr(sys.stdout, "log", sys.stdout)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = kept


def _tell(findings: Sequence[Finding], device: str, size: int, seconds: float, json: Path | None) -> None:
    from rich.console import Console

    if json:
        write_json(json, as_json(findings, device, size, seconds=seconds))
    console = Console(highlight=False, file=sys.stdout)
    for finding in findings:
        console.print(finding.line(), soft_wrap=True)
    console.print(f"{verdict(findings, device, size)} ({seconds:.0f} s)", soft_wrap=True)
