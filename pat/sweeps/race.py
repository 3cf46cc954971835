"""A race: all members of a sweep to one step, and only the best of them to the end. One round of successive halving.

Every member is the same run as by itself, stopped at that step (run.until), so the winner ends with the bits of a run
without a race. Where nothing before the first cut depends on what the members differ in, these steps are trained
once, and each member is a fork of them. Source: Jamieson & Talwalkar 2016, arXiv:1502.07943, there with more rounds.
"""

from __future__ import annotations

import io
import json
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pat.checkpoint import retention
from pat.checkpoint.fork import fork, is_dense_part
from pat.common import files
from pat.config.cluster import ClusterConfig
from pat.config.frozen import changed_keys, load
from pat.config.quoting import quoted
from pat.launch.process import only_user_of
from pat.run import provenance
from pat.run.directory import UNTIL, ExitCode, RunDir
from pat.sweeps import on_slurm, results
from pat.sweeps.heat import Heat, end_of
from pat.sweeps.members import Member
from pat.sweeps.results import RACE_FILE, Axis
from pat.sweeps.runner import Ended, Place, Runner, Running, check_places, start_here, visible_devices
from pat.sweeps.sweep import WIDTH, is_done

DENSE = "dense"  # the run that the members fork from


@dataclass
class Race:
    """The members of a race and what is known of each. Finished runs are recorded in race.json and not
    repeated."""

    out: Path
    command: Sequence[str]
    members: Sequence[Member]
    y: Axis  # the metric that decides
    heat: Heat
    jobs: int
    say: Callable[[str], None]
    start: Callable[[Member, Place, Path], Running] = start_here  # (run, its place, its log)
    cluster: ClusterConfig | None = None  # None: on this machine
    records: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])  # by member
    ended: dict[str, Ended] = field(default_factory=dict[str, Ended])  # of this start

    def run(self, go_on: bool) -> int:
        """Run what is missing; returns the exit code of `pat sweep`."""
        if self.cluster is None:
            check_places(self.members, self.jobs, visible_devices())
        earlier = self._earlier(go_on)
        with only_user_of(self.out, "--out", RACE_FILE):
            self.records = {member.name: self._known(member, earlier.get(member.name)) for member in self.members}
            self._write()
            code = self._heats() or self._finish()
            self._write()
            self.say(self.shown())
        if code == ExitCode.PREEMPTED:
            self.say("stopped on request: the same command with --continue goes on from there")
        elif code:
            begun = "once that is mended, " if code == ExitCode.BAD_INPUT else ""
            self.say(f"{self._failed()}{begun}the same command with --continue goes on from there")
        return code

    @property
    def winner(self) -> Member | None:
        """The best of all heats, of equal ones the first; None: a heat is missing, or all have diverged."""
        if not all(record["ended"] for record in self.records.values()):
            return None
        name = best({name: record["value"] for name, record in self.records.items()}, self.y.higher_is_better)
        return next((member for member in self.members if member.name == name), None)

    def log(self, member: Member) -> Path:
        """The output of a run's command in its last start, or of rank 0 of its job."""
        if self.cluster is not None:
            return RunDir(member.dir).logs / "rank-0.log"
        return self.out / "logs" / f"{member.name}.log"

    def shown(self) -> str:
        """The table: which runs were out, and when."""
        table = Table(title=f"race {self.out.name}", title_justify="left", box=box.SIMPLE_HEAD)
        keys, last = list(self.members[0].varied), end_of(self.members).removeprefix("step ")
        ends = [key.rpartition(".")[2] for key in keys]
        for key, end in zip(keys, ends, strict=True):
            table.add_column(end if ends.count(end) == 1 else key, overflow="fold")
        for column in (f"{self.y.name} at {self.heat.step}", "out", f"{self.y.name} at {last}", "sparsity", "minutes"):
            table.add_column(column, justify="right")
        for member in self.members:
            record, summary = self.records[member.name], files.read_json(RunDir(member.dir).summary) or {}
            final = (summary.get("metrics") or {}).get(self.y.name)
            cells = [Text(value) for value in member.varied.values()]  # a list in brackets is no markup
            cells += ["" if record["value"] is None else f"{record['value']:.4g}"]
            cells += [record["out"] or "", "" if final is None else f"{final:.4g}"]
            cells += [f"{summary['sparsity']:.1%}" if summary else "", f"{record['seconds'] / 60:.1f}"]
            table.add_row(*cells)
        console = Console(file=io.StringIO(), width=max(Console().width, WIDTH))
        with console.capture() as captured:
            console.print(table)
        return captured.get().rstrip()

    # -- runs --------------------------------------------------------------------------------------------------------

    def _heats(self) -> int:
        """Run all missing heats to the step; returns an exit code if the winner is not known then."""
        left = [member for member in self.members if not self.records[member.name]["ended"]]
        if left and self.heat.shared and (code := self._share(left)):
            return code
        if self._run([_until(member, self.heat.step) for member in left]):
            return ExitCode.PREEMPTED
        codes = [self.ended[member.name].code for member in left]
        return next((code for code in codes if code not in (ExitCode.DONE, ExitCode.DIVERGED)), ExitCode.DONE)

    def _is_over(self, member: Member, how: Ended) -> None:
        """Whether a heat is over; a failed one is not."""
        if how.code in (ExitCode.DONE, ExitCode.DIVERGED):
            value = None if how.code else self._value(member)
            self.records[member.name] |= {"ended": True, "value": value, "out": "diverged" if how.code else None}

    def _finish(self) -> int:
        """Train the winner to the end, and remove the checkpoints of the others."""
        winner = self.winner
        if winner is None:
            return ExitCode.DIVERGED
        for member in self.members:
            if member is not winner:
                self.records[member.name]["out"] = self.records[member.name]["out"] or f"before {self.heat.step}"
                _drop(RunDir(member.dir))
        _drop(RunDir(self.out / DENSE))
        self.records[winner.name]["out"] = None
        self._write()
        if is_done(winner):
            return ExitCode.DONE
        self.say(f"{winner.name} goes on: {self.y.name} {self.records[winner.name]['value']:.4g} is the best")
        if self._run([winner]):
            return ExitCode.PREEMPTED
        how = self.ended[winner.name]
        if how.code == ExitCode.DONE and not is_done(winner):
            how = replace(how, code=ExitCode.ERROR, message="it ended before its last step")
            self.ended[winner.name] = how
        return how.code

    def _share(self, members: Sequence[Member]) -> int:
        """The steps that all have in common, and a fork of them for each member; an exit code where that failed."""
        waiting = [member for member in members if not retention.steps(RunDir(member.dir).checkpoints)]
        source = RunDir(self.out / DENSE)
        if not waiting:
            return ExitCode.DONE
        if not is_dense_part(source, self.heat.shared):
            config = waiting[0].config.changed(run__dir=str(source.path), run__name=DENSE)
            place = (f"run.dir={quoted(source.path)}", f"run.name={DENSE}")
            kept = (each for each in waiting[0].command[1:] if not each.startswith(("run.dir=", "run.name=")))
            if self._run([_until(Member(DENSE, source.path, {}, ("train", *place, *kept), config), "first_cut")]):
                return ExitCode.PREEMPTED
            if code := self.ended[DENSE].code:
                return code
        for member in waiting:
            fork(source, RunDir(member.dir), self.heat.shared)
        return ExitCode.DONE

    def _run(self, members: Sequence[Member]) -> bool:
        """Whether it was asked to stop."""

        def begun(member: Member) -> None:
            if self.cluster is None:
                self.say(f"{member.name}: started (tail -f {shlex.quote(str(self.log(member)))})")

        def ended(member: Member, how: Ended) -> None:
            self.ended[member.name] = how
            if member.name in self.records:
                self.records[member.name]["seconds"] += round(how.seconds, 1)
                if not self.records[member.name]["ended"]:
                    self._is_over(member, how)
                self._write()
            self.say(f"{member.name}: {results.meaning(how.code)} after {how.seconds:.0f} s {how.message}".rstrip())

        def start(member: Member, place: Place) -> Running:
            if self.cluster is None:
                return self.start(member, place, self.log(member))
            job = on_slurm.start(member, self.out.name, self.cluster)
            if job.number:  # else why there is none is said at its end
                self.say(f"{member.name}: job {job.number} (pat logs {shlex.quote(str(member.dir))})")
            return job

        return Runner(self.jobs, start, self.log, begun, ended).run(members)

    def _value(self, member: Member) -> float:
        """The metric at the end of a heat; of a run that ended earlier, its final one."""
        run = RunDir(member.dir)
        if summary := files.read_json(run.summary):
            return summary["metrics"][self.y.name]
        lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
        key = f"{UNTIL}/{self.y.name}"
        return next(line[key] for line in reversed(lines) if key in line)

    def _failed(self) -> str:
        return "".join(f"{name}: {how.message}\n" for name, how in self.ended.items() if how.code)

    # -- files -------------------------------------------------------------------------------------------------------

    def _earlier(self, go_on: bool) -> dict[str, Any]:
        """The records of an earlier start. ValueError where the folder holds anything else."""
        written = files.read_json(self.out / RACE_FILE)
        if (self.out / results.SWEEP_FILE).exists():
            raise ValueError(f"{self.out} holds a sweep without a race: give another --out")
        if written is None:
            return {}
        if not go_on:
            raise ValueError(f"{self.out} holds a race: --continue goes on; for a new one give another --out")
        for key, now in (("step", self.heat.step), ("metric", self.y.name)):
            if written[key] != now:
                raise ValueError(
                    f"{self.out} holds a race with another {key} ({written[key]}, now {now}): give another --out"
                )
        self._check_shared()
        return results.of_these(self.members, written, self.out)

    def _check_shared(self) -> None:
        """ValueError where the steps that members fork from were trained by another config."""
        frozen, config = RunDir(self.out / DENSE).config, self.members[0].config
        if not frozen.exists():
            return
        varied = {key for member in self.members for key in changed_keys(config, member.config)}
        changed = {key: both for key, both in changed_keys(load(frozen), config).items() if key not in varied}
        if changed:
            changes = "; ".join(f"{key} was {old}, now {new}" for key, (old, new) in changed.items())
            raise ValueError(
                f"{self.out} holds a race whose members share steps of another config ({changes}): give another --out, "
                "or the old values"
            )

    def _known(self, member: Member, earlier: Mapping[str, Any] | None) -> dict[str, Any]:
        """A member's record: that of an earlier start if it was of this very config."""
        frozen = RunDir(member.dir).config
        known = earlier if frozen.exists() and not changed_keys(load(frozen), member.config) else None
        unknown = {"ended": False, "value": None, "out": None, "seconds": 0.0}
        return {
            "name": member.name,
            "varied": member.varied,
            "command": list(member.command),
            "dir": str(member.dir),
            **{key: (known or unknown)[key] for key in unknown},
        }

    def _write(self) -> None:
        """race.json, atomically."""
        winner = self.winner
        content = {
            "name": self.out.name,
            "command": list(self.command),
            "step": self.heat.step,
            "shared_steps": self.heat.shared,
            "metric": self.y.name,
            "higher_is_better": self.y.higher_is_better,
            "winner": winner and winner.name,
            "versions": provenance.versions(),
            "members": list(self.records.values()),
        }
        files.write_json(self.out / RACE_FILE, content)


def best(values: Mapping[str, float | None], higher_is_better: bool) -> str | None:
    """The name with the best value, of equal ones the first; None where none has any."""
    known = {name: value for name, value in values.items() if value is not None}
    return (max if higher_is_better else min)(known, key=lambda name: known[name]) if known else None


def _until(member: Member, until: int | str) -> Member:
    """The run that stops there; a job is submitted by its config, a process here by its command."""
    command = (member.command[0], f"run.until={until}", *member.command[1:])
    return replace(member, command=command, config=member.config.changed(run__until=until))


def _drop(run: RunDir) -> None:
    """Remove the checkpoints of a run that is out; its logs stay."""
    for folder in (run.checkpoints, run.calibration):
        shutil.rmtree(folder, ignore_errors=True)
