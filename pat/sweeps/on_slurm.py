"""Members of a sweep as jobs of a Slurm cluster: each is submitted as `pat submit` does, and then only watched.

A sweep that is stopped leaves its jobs in the queue; --continue watches them again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from pat.common.files import read_json
from pat.config import frozen
from pat.config.cluster import ClusterConfig
from pat.launch import slurm
from pat.run.directory import ExitCode, RunDir, read_exit
from pat.schema import Config
from pat.sweeps.members import Member

LOOK_S = 5.0  # between two questions to Slurm about one job


@dataclass
class Job:
    """The Slurm job of one member, which a runner polls and signals as it does a process."""

    run: RunDir
    number: str  # empty where Slurm has refused it
    message: str = ""
    looked: float = -LOOK_S
    left: bool = False

    def poll(self) -> int | None:
        """The run's exit code once its job is over; that of a preempted run when nobody watches it any more."""
        if not self.number:
            return ExitCode.BAD_INPUT
        if self.left:
            return ExitCode.PREEMPTED
        if time.monotonic() - self.looked < LOOK_S:
            return None
        self.looked = time.monotonic()
        state = slurm.states([self.number]).get(self.number)
        if state is not None and state not in slurm.OVER:
            return None
        code = (read_exit(self.run.path) or {}).get("code")
        if state == "COMPLETED":
            return ExitCode.DONE if code is None else code
        return ExitCode.ERROR if code is None else code  # a job that failed, or that Slurm has forgotten

    def send_signal(self, sig: int, /) -> None:
        """Do nothing: the sweep is asked to stop, but not its jobs."""
        self.left, self.message = True, f"job {self.number} was left to itself"


def start(member: Member, group: str, cluster: ClusterConfig) -> Job:
    """Submit a member, unless it has a job that is not over."""
    run = RunDir(member.dir.resolve())
    number, config = (read_json(run.job) or {}).get("job_id", ""), config_of(member, group, cluster)
    state = slurm.states([number]).get(number, slurm.OVER[0]) if number else slurm.OVER[0]
    if state == slurm.SILENT:  # its last job may be over, and exit.json is then of an earlier start
        return Job(run, "", f"Slurm does not say whether its job {number} is over: try again later")
    if state not in slurm.OVER:
        differing = frozen.changed_keys(frozen.load(run.config), config)
        if differing:
            keys = ", ".join(sorted(differing))
            return Job(run, "", f"job {number} runs it with another config ({keys}): scancel it, or give another --out")
        return Job(run, number)
    try:
        return Job(run, slurm.submit(config, cluster))
    except ValueError as error:  # a limit on jobs, perhaps: the others go on
        return Job(run, "", str(error))


def config_of(member: Member, group: str, cluster: ClusterConfig) -> Config:
    """The config of its job: in its directory, under the sweep's name, with the ranks of the cluster."""
    given = member.config
    config = given.changed(run__dir=str(member.dir), run__name=member.name, logger__group=given.logger.group or group)
    return slurm.fit_ranks(config, cluster)


def fetch(members: Sequence[Member]) -> None:
    """For nodes without network: models and prepared data of all members, before the first job. ValueError."""
    from pat.training import preflight  # heavy

    for member in members:
        preflight.fetch(member.config)
