"""A search from its first run to its answer. Finished runs are recorded in search.json and not repeated."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pat.checkpoint import retention
from pat.checkpoint.fork import fork, is_dense_part
from pat.common import files
from pat.config.frozen import changed_keys, to_config
from pat.launch.process import only_user_of
from pat.run import provenance
from pat.run.directory import ExitCode, RunDir
from pat.search import report
from pat.search.bisection import best, upcoming
from pat.search.judged import Judge
from pat.search.plan import Plan, said
from pat.sweeps.members import Member
from pat.sweeps.runner import Ended, Runner, Running, start_here

SEARCH_FILE = "search.json"


def _here(member: Member, log: Path) -> Running:
    return start_here(member, 0, 1, log)


@dataclass
class Search:
    """The candidates of a search and what is known of each."""

    plan: Plan
    command: Sequence[str]
    say: Callable[[str], None]
    keep_all: bool = False  # the checkpoints of runs that are not the best, too
    start: Callable[[Member, Path], Running] = _here  # a run, and where what it prints goes
    records: dict[int, dict[str, Any]] = field(default_factory=dict[int, dict[str, Any]])  # by index of the value
    seconds: dict[str, float] = field(default_factory=dict[str, float])  # of all starts that ended, by run

    def run(self) -> int:
        """Run what is missing; returns the exit code of `pat search`."""
        plan = self.plan
        with only_user_of(plan.out, "--out", SEARCH_FILE):
            self._go_on()
            self._write()
            while (index := upcoming(len(plan.values), self.inside)) is not None:
                if code := self._candidate(index):
                    self._write()
                    return code
            self._tidy(ended=True)
            self._write(result := report.result(plan, self.records, self.seconds))
            self.say(report.shown(plan, self.records))
            self.say(report.in_words(plan, result))
        return ExitCode.DONE if result["allowed"] is not None else ExitCode.OUTSIDE_ENVELOPE

    @property
    def inside(self) -> dict[int, bool]:
        """Of the values that are known."""
        return {index: record["inside"] for index, record in self.records.items()}

    @cached_property
    def judge(self) -> Judge:
        """The judge of whether a run is inside."""
        plan = self.plan
        return Judge(plan.config, plan.measuring, plan.dense.dir if plan.fork_step else None, plan.out)

    def log(self, member: Member) -> Path:
        """The output of a run's command in its last start."""
        return self.plan.out / "logs" / f"{member.name}.log"

    # -- runs ------------------------------------------------------------------------------------------------------

    def _candidate(self, index: int) -> int:
        """Run one candidate to its end and record it; returns its exit code if it has no result."""
        plan, value = self.plan, self.plan.order[index]
        member = plan.member(value)
        run = RunDir(member.dir)
        if plan.fork_step and not (run.checkpoints.exists() and retention.steps(run.checkpoints)):
            if code := self._dense():
                return code
            fork(RunDir(plan.dense.dir), run, plan.fork_step)
        ended = self._start(member, f"[{len(self.records) + 1}]")
        if ended is None or ended.code not in (ExitCode.DONE, ExitCode.DIVERGED):
            return self._stopped(member, ended)
        record: dict[str, Any] = {"name": member.name, "value": value, "dir": str(member.dir), "code": ended.code}
        record |= {"message": ended.message, "steps_run": plan.config.train.num_steps - plan.fork_step}
        record |= {"seconds": round(self.seconds[member.name], 1)}
        if ended.code == ExitCode.DONE:
            record |= self.judge(run)
        else:
            record |= {"inside": False, "outside": {}, "sparsity": plan.values[value], "metrics": {}, "limits": {}}
        self.records[index] = record
        self._write()
        self.say(f"[{len(self.records)}] {report.verdict(record)}")
        self._tidy()
        return ExitCode.DONE

    def _dense(self) -> int:
        """The part before the first cut, unless it is there; its exit code if it fails."""
        member = self.plan.dense
        if is_dense_part(RunDir(member.dir), self.plan.fork_step):
            return ExitCode.DONE
        ended = self._start(member, "[dense part]")
        if ended is None or ended.code != ExitCode.DONE:
            return self._stopped(member, ended)
        self._write()
        return ExitCode.DONE

    def _start(self, member: Member, number: str) -> Ended | None:
        """Start a run and wait for it; None: asked to stop before."""
        found: list[Ended] = []

        def begun(member: Member) -> None:
            self.say(f"{number} {member.name}: started (tail -f {shlex.quote(str(self.log(member)))})")

        def ended(member: Member, how: Ended) -> None:
            self.seconds[member.name] = self.seconds.get(member.name, 0.0) + how.seconds
            found.append(how)

        Runner(1, lambda each, _: self.start(each, self.log(each)), self.log, begun, ended).run([member])
        return found[0] if found else None

    def _stopped(self, member: Member, ended: Ended | None) -> int:
        if ended is None or ended.code == ExitCode.PREEMPTED:
            self.say(f"stopped on request; {len(self.records)} runs are done: the same command goes on from there")
            return ExitCode.PREEMPTED
        self.say(f"{member.name}: {ended.message}\nthe same command goes on from there")
        return ended.code

    # -- files -----------------------------------------------------------------------------------------------------

    def _tidy(self, ended: bool = False) -> None:
        """Remove the checkpoints that nothing needs: of all but the best run, and in the end of the dense part."""
        if self.keep_all:
            return
        kept = best(self.inside)
        names = [record["name"] for index, record in self.records.items() if index != (0 if kept is None else kept)]
        for name in [*names, *([self.plan.dense.name] if ended else [])]:
            run = RunDir(self.plan.out / name)
            for folder in (run.checkpoints, run.calibration):
                shutil.rmtree(folder, ignore_errors=True)

    def _go_on(self) -> None:
        """The results of earlier starts of the same search. ValueError where the folder holds another."""
        written = files.read_json(self.plan.out / SEARCH_FILE)
        if written is None:
            return
        plan = self.plan
        differing = {
            key: (old, new) for key, (old, new) in changed_keys(to_config(written["config"]), plan.config).items()
        }
        asked = {"values": plan.order, "searched": plan.quantity.override(plan.order[-1])}
        for key, new in (asked | {"measuring": plan.measuring.plain()}).items():
            if written.get(key, new) != new:
                differing[key] = (written[key], new)
        if differing:
            changes = "; ".join(f"{key} was {old}, now {new}" for key, (old, new) in differing.items())
            raise ValueError(f"{plan.out} holds another search ({changes}): give another --out, or the old values")
        self.records = {plan.order.index(each["value"]): each for each in written["candidates"]}
        self.seconds = written["seconds"]
        if self.records:
            self.say(f"done already: {', '.join(each['name'] for each in self.records.values())}")

    def _write(self, result: dict[str, Any] | None = None) -> None:
        """search.json, atomically."""
        plan = self.plan
        content = {
            "command": list(self.command),
            "searched": plan.quantity.override(plan.order[-1]),
            "envelope": said(plan.config),
            "values": plan.order,
            "fork_step": plan.fork_step,
            "measuring": plan.measuring.plain(),
            "candidates": list(self.records.values()),
            "seconds": self.seconds,
            "result": result,
            "versions": provenance.versions(),
            "config": plan.config.plain(),
        }
        files.write_json(plan.out / SEARCH_FILE, content)
