"""A sweep from its start to its table and picture."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from pat.common import files
from pat.config.cluster import ClusterConfig
from pat.launch.process import only_user_of
from pat.run import directory
from pat.run.directory import ExitCode
from pat.sweeps import on_slurm, plot, results
from pat.sweeps.members import Member, check_one
from pat.sweeps.results import RACE_FILE, SWEEP_FILE, Axis
from pat.sweeps.runner import Ended, Place, Runner, check_places, start_here, visible_devices

WIDTH = 110  # of the table, at least


@dataclass
class Sweep:
    """The members of a sweep and what is known of each."""

    out: Path
    command: Sequence[str]
    members: Sequence[Member]
    x: Axis
    y: Axis
    jobs: int
    say: Callable[[str], None]
    cluster: ClusterConfig | None = None  # None: on this machine
    checked: bool = True  # whether model and data are read before the first run

    def run(self, go_on: bool) -> int:
        """Run what is missing, then the table and the picture; returns the exit code of `pat sweep`."""
        left = [member for member in self.members if not (go_on and is_done(member))]
        if self.cluster is None:
            check_places(self.members, self.jobs, visible_devices())
        else:  # with the ranks that they will have, before the first is submitted
            left = [replace(one, config=on_slurm.config_of(one, self.out.name, self.cluster)) for one in left]
        earlier = self._earlier(go_on)
        if self.checked:
            check_one(left, here=self.cluster is None)
        if self.cluster is not None and self.cluster.offline:
            on_slurm.fetch(left)
        with only_user_of(self.out, "--out", SWEEP_FILE):
            done = [member for member in self.members if go_on and is_done(member)]
            self.records = {member.name: self._known(member, earlier, member in done) for member in self.members}
            missing = [member for member in self.members if member not in done]
            self.number = {member.name: f"[{i}/{len(self.members)}]" for i, member in enumerate(self.members, 1)}
            if done:
                self.say(f"{len(done)} of {len(self.members)} runs are done already")
            if not plot.available():
                self.say(f"matplotlib is not installed, so there will be no picture; {plot.HOW_TO_GET}")
            self._write()
            stopped = Runner(self.jobs, self._start, self.log, self._begun, self._ended).run(missing)
            measured = self._measure_latencies() if self.x.name == "latency" and not stopped else ExitCode.DONE
            self._report()
        codes = [*(record["code"] for record in self.records.values()), measured]
        return ExitCode.PREEMPTED if stopped else next((code for code in codes if code), ExitCode.DONE)

    def log(self, member: Member) -> Path:
        """The output of a member's command in its last start here, or of rank 0 of its job."""
        if self.cluster is not None:
            return directory.RunDir(member.dir).logs / "rank-0.log"
        return self.out / "logs" / f"{member.name}.log"

    def _earlier(self, go_on: bool) -> dict[str, Any]:
        """The records of an earlier start. ValueError where the folder holds anything else."""
        written = files.read_json(self.out / SWEEP_FILE)
        if (self.out / RACE_FILE).exists():
            raise ValueError(f"{self.out} holds a race: give its --race STEP, or another --out")
        if written and not go_on:
            raise ValueError(
                f"{self.out} holds a sweep: --continue runs what it lacks; for a new one give another --out"
            )
        return results.of_these(self.members, written or {"members": []}, self.out)

    def _known(self, member: Member, earlier: Mapping[str, Any], done: bool) -> dict[str, Any]:
        """A member's record before it is started here; of one that is to run again only its seconds count."""
        known: dict[str, Any] = earlier.get(member.name, {})
        return results.record_of(
            member, None, known | {"code": 0, "message": ""} if done else {"seconds": known.get("seconds")}
        )

    def _start(self, member: Member, place: Place) -> Any:
        if self.cluster is None:
            return start_here(member, place, self.log(member))
        job = on_slurm.start(member, self.out.name, self.cluster)
        if job.number:  # else why there is none is said at its end
            where = shlex.quote(str(member.dir))
            self.say(f"{self.number[member.name]} {member.name}: job {job.number} (pat logs {where})")
        return job

    def _begun(self, member: Member) -> None:
        if self.cluster is None:
            where = shlex.quote(str(self.log(member)))
            self.say(f"{self.number[member.name]} {member.name}: started (tail -f {where})")

    def _ended(self, member: Member, ended: Ended) -> None:
        record = self.records[member.name] = results.record_of(member, ended, self.records[member.name])
        value = self.y.value(record)
        how = f"{self.y.name} {value:.4g}" if value is not None else record["message"]
        self.say(f"{self.number[member.name]} {member.name}: {record['meaning']} after {ended.seconds:.0f} s; {how}")
        self._write()

    def _measure_latencies(self) -> ExitCode:
        """One after another when all have ended: nothing else runs beside them. A failure costs that one's alone."""
        from pat.sweeps.latency import forward_ms

        code = ExitCode.DONE
        for member in self.members:
            record = self.records[member.name]
            if record["summary"] and record["latency_ms"] is None:
                try:
                    record["latency_ms"] = forward_ms(member.dir)
                except (ValueError, OSError, RuntimeError) as error:
                    record["message"], code = f"no latency: {error}", ExitCode.ERROR
                else:
                    self.say(f"{self.number[member.name]} {member.name}: {record['latency_ms']:.1f} ms a forward")
                self._write()
        return code

    def _write(self) -> None:
        results.write(self.out, self.command, list(self.records.values()), self.x, self.y)

    def _report(self) -> None:
        records = list(self.records.values())
        console = Console()
        console.width = max(console.width, WIDTH)  # a log has no width of 80 columns
        console.print(results.table(records, self.x, self.y, f"sweep {self.out.name}"))
        for record in records:
            if record["code"] or record["message"]:
                self.say(f"{record['name']}: {record['meaning']}: {record['message']}")
        points = results.points(records, self.x, self.y)
        if points and plot.available():
            picture = self.out / "pareto.png"
            plot.draw(points, self.x, self.y, self.out.name, picture)
            self.say(f"the picture is {picture}")
        left = sum(record["code"] != ExitCode.DONE for record in records)
        if left:
            how = "runs them again" if self.cluster is None else "watches their jobs, and submits those that have none"
            self.say(f"{left} of {len(records)} runs are not done: the same command with --continue {how}")


def is_done(member: Member) -> bool:
    """Whether its last checkpoint is whole and its summary exists, both with this very config."""
    from pat.config.frozen import changed_keys, load
    from pat.training.preflight import is_complete

    frozen = directory.RunDir(member.dir).config
    return frozen.exists() and not changed_keys(load(frozen), member.config) and is_complete(member.config, member.dir)
