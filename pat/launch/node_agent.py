"""One host of several, started by `pat.launch.multi_node`: its ranks, and what to do when ranks elsewhere are lost."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from pat.common import files
from pat.launch import process
from pat.launch.process import ORPHAN_GRACE_S, RankRecord
from pat.launch.supervisor import Supervisor, as_dead, failures
from pat.run import directory, provenance
from pat.run.directory import ExitCode, RunDir

SCRIPT = "start.sh"  # beside the signals: what each host runs, with the environment of the command


class _OneHost(Supervisor):
    """The ranks of this host; their fate, and the signals for them, are in files that all hosts see."""

    def __init__(self, run_dir: Path, launcher: subprocess.Popen[bytes], mine: range) -> None:
        super().__init__(run_dir, launcher)
        self.mine = mine
        self.poll_s = 0.5  # over a file server
        self.told = 0
        self.look_at = 0.0
        self.left_alone = False
        self.everywhere: list[RankRecord] = []

    def records(self) -> list[RankRecord]:
        """The records of this host's ranks."""
        return process.rank_records(self.run_dir, self.mine)

    def announce(self) -> None:
        """Nothing: the front end announces."""

    def listen(self) -> None:
        """Take the front end's signals; its end counts as one."""
        told = files.read_json(RunDir(self.run_dir).signals) or []
        self.signals += told[self.told :]
        self.told = max(self.told, len(told))
        if not self.left_alone and select.select([0], [], [], 0)[0] and not os.read(0, 4096):
            self.left_alone = True
            (RunDir(self.run_dir).signals.parent / SCRIPT).unlink(missing_ok=True)  # keys are in it
            self.signals.append(signal.SIGTERM)
            self.deadline = self.deadline or time.monotonic() + ORPHAN_GRACE_S

    def lost(self, gone: list[RankRecord]) -> list[RankRecord]:
        """The lost ranks of all hosts; a rank that died here is noticed by nobody else."""
        dead = [as_dead(rank, f" on {directory.HOST}") for rank in gone if rank.code is None]
        for rank in dead:
            rank.write(self.run_dir)
        if time.monotonic() > self.look_at:
            self.look_at = time.monotonic() + 2.0
            self.everywhere = process.rank_records(self.run_dir)
        return dead or failures(self.everywhere)

    def result(self) -> int:
        """0, unless this host has failed: then pdsh ends the others."""
        if self.records():
            return ExitCode.DONE
        print(f"pat: {directory.HOST}: the launcher died before its ranks began", file=sys.stderr, flush=True)
        return ExitCode.ERROR


def main() -> int:
    """`python -m pat.launch.node_agent RUN HOSTS ADDRESS PORT NODE check`, or `... NODE start RANK_PROGRAM`."""
    run_dir, hosts, address, port = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    node, action = int(sys.argv[5]), sys.argv[6]
    if action == "check":
        process.end_old_ranks(run_dir)
        print("pat-host", node, json.dumps(provenance.versions()), flush=True)
        return ExitCode.DONE
    from pat.launch.single_node import deepspeed_command, rank_variables, ranks_here
    from pat.schema import Config, EngineConfig

    slots = list(hosts.values())
    first = sum(slots[:node])
    environment = rank_variables(Config(engine=EngineConfig(world_size=slots[node])))  # as on one machine
    environment["PAT_HOST"] = directory.HOST
    command = deepspeed_command({name: list(range(count)) for name, count in hosts.items()}, address, port, node)
    with ranks_here(environment, [*command, *sys.argv[7:], str(run_dir)]) as launcher:
        return _OneHost(run_dir, launcher, range(first, first + slots[node])).until_all_have_left()


if __name__ == "__main__":
    sys.exit(main())
