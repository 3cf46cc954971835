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
from pat.launch.status import last_values
from pat.run import provenance
from pat.run.directory import ExitCode, RunDir
from pat.search import report
from pat.search.bisection import best, upcoming
from pat.search.judged import Judge
from pat.search.plan import Plan, said
from pat.sweeps.members import Member
from pat.sweeps.runner import Ended, Place, Runner, Running, check_places, start_here, visible_devices
from pat.sweeps.sweep import is_done

SEARCH_FILE = "search.json"


@dataclass
class Search:
    """The candidates of a search and what is known of each."""

    plan: Plan
    command: Sequence[str]
    say: Callable[[str], None]
    keep_all: bool = False  # the checkpoints of runs that are not the best, too
    jobs: int = 1  # runs at once
    start: Callable[[Member, Place, Path], Running] = start_here  # (run, its place, its log)
    records: dict[int, dict[str, Any]] = field(default_factory=dict[int, dict[str, Any]])  # by index of the value
    seconds: dict[str, float] = field(default_factory=dict[str, float])  # of all starts that ended, by run
    round: list[float] = field(default_factory=list[float])  # the values that were last begun

    def run(self) -> int:
        """Run what is missing; returns the exit code of `pat search`."""
        plan = self.plan
        check_places([plan.dense], self.jobs, visible_devices())
        with only_user_of(plan.out, "--out", SEARCH_FILE):
            self._go_on()
            self._write()
            while upcoming(len(plan.values), self.inside):
                if not self._left():
                    self.round = [plan.order[i] for i in upcoming(len(plan.values), self.inside, self.jobs)]
                if code := self._round(self._left()):
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

    def _left(self) -> list[float]:
        """Values of the last round that have no record yet."""
        return [value for value in self.round if self.plan.order.index(value) not in self.records]

    def _round(self, values: Sequence[float]) -> int:
        """Run these values to their ends and record them; returns an exit code if one has no result."""
        plan, members = self.plan, [self.plan.member(value) for value in values]
        waiting = [member for member in members if plan.fork_step and not _has_checkpoints(member)]
        if waiting and (code := self._dense()):
            return code
        for member in waiting:
            fork(RunDir(plan.dense.dir), RunDir(member.dir), plan.fork_step)
        self._write()
        codes, judged_later = dict[str, Ended](), list[tuple[Member, Ended]]()

        def ended(member: Member, how: Ended) -> None:
            codes[member.name] = how
            if _is_result(how):
                if self.judge.needs_silence:
                    judged_later.append((member, how))
                else:
                    self._record(member, values[members.index(member)], how)
            self._write()

        left = [member for member in members if not is_done(member)]
        for member in members:  # an earlier start ended before it was judged
            if member not in left:
                ended(member, Ended(ExitCode.DONE, 0.0))
        stopped = self._run(left, ended)
        for member, how in judged_later if not stopped else ():  # later, then: they are done
            self._record(member, values[members.index(member)], how)
        failed = next((m for m in members if m.name in codes and not _is_result(codes[m.name])), None)
        if stopped or (failed and codes[failed.name].code == ExitCode.PREEMPTED):
            return self._stopped(members[0], None)
        return self._stopped(failed, codes[failed.name]) if failed else ExitCode.DONE

    def _record(self, member: Member, value: float, how: Ended) -> None:
        """Judge a run that has ended, and record it."""
        plan, run = self.plan, RunDir(member.dir)
        record: dict[str, Any] = {"name": member.name, "value": value, "dir": str(member.dir), "code": how.code}
        record |= {"message": how.message, "seconds": round(self.seconds.get(member.name, 0.0), 1)}
        if how.code == ExitCode.DONE:
            record |= self.judge(run)
        else:
            record |= {"inside": False, "outside": {}, "sparsity": plan.values[value], "metrics": {}, "limits": {}}
            record["steps"] = int(last_values(run.metrics, ("step",)).get("step") or 0)
        record["steps_run"] = max(0, record["steps"] - plan.fork_step)  # it may have stopped early, or diverged
        self.records[plan.order.index(value)] = record
        self._write()
        self.say(f"[{len(self.records)}] {report.verdict(record)}")
        self._tidy()

    def _dense(self) -> int:
        """The part before the first cut, unless it is there; its exit code if it fails."""
        member = self.plan.dense
        if is_dense_part(RunDir(member.dir), self.plan.fork_step):
            return ExitCode.DONE
        found: list[Ended] = []
        self._run([member], lambda _, how: found.append(how))
        if not found or found[0].code != ExitCode.DONE:
            return self._stopped(member, found[0] if found else None)
        self._write()
        return ExitCode.DONE

    def _run(self, members: Sequence[Member], then: Callable[[Member, Ended], None]) -> bool:
        """Start runs and wait for them; whether it was asked to stop."""

        def begun(member: Member) -> None:
            self.say(f"{member.name}: started (tail -f {shlex.quote(str(self.log(member)))})")

        def ended(member: Member, how: Ended) -> None:
            self.seconds[member.name] = self.seconds.get(member.name, 0.0) + how.seconds
            then(member, how)

        def start(member: Member, place: Place) -> Running:
            return self.start(member, place, self.log(member))

        return Runner(self.jobs, start, self.log, begun, ended).run(members)

    def _stopped(self, member: Member, ended: Ended | None) -> int:
        if ended is None or ended.code == ExitCode.PREEMPTED:
            self.say(f"stopped on request; {len(self.records)} runs are done: the same command goes on from there")
            return ExitCode.PREEMPTED
        begun = "once that is mended, " if ended.code == ExitCode.BAD_INPUT else ""
        self.say(f"{member.name}: {ended.message}\n{begun}the same command goes on from there")
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
        asked: dict[str, Any] = {"values": plan.order, "searched": plan.quantity.override(plan.order[-1])}
        if written["candidates"]:  # before, nothing was measured
            asked["measuring"] = plan.measuring.plain()
        for key, new in asked.items():
            if written.get(key, new) != new:
                differing[key] = (written[key], new)
        if differing:
            changes = "; ".join(f"{key} was {old}, now {new}" for key, (old, new) in differing.items())
            raise ValueError(f"{plan.out} holds another search ({changes}): give another --out, or the old values")
        self.records = {plan.order.index(each["value"]): each for each in written["candidates"]}
        self.seconds, self.round = written["seconds"], written.get("round", [])
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
            "round": self.round,
            "candidates": list(self.records.values()),
            "seconds": self.seconds,
            "result": result,
            "versions": provenance.versions(),
            "config": plan.config.plain(),
        }
        files.write_json(plan.out / SEARCH_FILE, content)


def _is_result(how: Ended) -> bool:
    return how.code in (ExitCode.DONE, ExitCode.DIVERGED)


def _has_checkpoints(member: Member) -> bool:
    folder = RunDir(member.dir).checkpoints
    return folder.exists() and bool(retention.steps(folder))
