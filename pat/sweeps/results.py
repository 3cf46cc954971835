"""The results of a sweep: sweep.json, a table, and the points that no other point beats.

A point is the mean over members that differ only in `seed`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from pat.common import files
from pat.run import provenance
from pat.run.directory import ExitCode, RunDir
from pat.sweeps.members import Member
from pat.sweeps.runner import Ended
from pat.tasks import base

SWEEP_FILE = "sweep.json"
RACE_FILE = "race.json"
NOT_RUN = "not run"


@dataclass(frozen=True)
class Axis:
    """One axis of the picture: which value of a summary is drawn, and in which direction it improves."""

    name: str
    label: str  # with its unit
    higher_is_better: bool
    scale: float = 1.0  # from the value's unit to the label's

    def value(self, record: Mapping[str, Any]) -> float | None:
        """The value in a member's record in sweep.json; None where it has none."""
        summary = record.get("summary") or {}
        if self.name == "latency":
            return record.get("latency_ms")
        if self.name == "parameters":
            every, gone = summary.get("parameters"), summary.get("sparsity_all_parameters")
            return None if every is None or gone is None else every * (1.0 - gone)
        if self.name == "sparsity":
            return summary.get("sparsity")
        return (summary.get("metrics") or {}).get(self.name)


X_AXES = {
    "sparsity": Axis("sparsity", "sparsity (% of the prunable weights)", True, 100.0),
    "parameters": Axis("parameters", "parameters that are not zero (millions)", False, 1e-6),
    "latency": Axis("latency", "latency of one forward (ms)", False),
}


@dataclass(frozen=True)
class Point:
    """The members that differ in their seed only."""

    varied: dict[str, str]  # without the seed
    x: float  # means
    y: float
    y_low: float
    y_high: float
    members: int
    best: bool = False  # no other point is as good in one and better in the other


def y_axis(members: Sequence[Member], metric: str | None) -> Axis:
    """The metric to draw, by default the one that the task shows. ValueError for one that it does not have."""
    names = {member.config.task.name for member in members}
    if len(names) > 1:
        raise ValueError(f"the tasks {' and '.join(sorted(names))} share no metric: sweep over runs of one task")
    task = base.build(members[0].config.task)
    name = metric or task.headline
    higher = task.higher_is_better(name)
    return Axis(name, f"{name} on held-out data ({'higher' if higher else 'lower'} is better)", higher)


def of_these(members: Sequence[Member], written: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """The records of an earlier start by name, from its JSON in `out`. ValueError for one of a run that is not among
    these."""
    records = {record["name"]: record for record in written["members"]}
    others = [name for name in records if name not in {member.name for member in members}]
    if others:
        more = f" and {len(others) - 1} more" if others[1:] else ""
        raise ValueError(
            f"{out} holds the run {others[0]}{more}, which this command does not have: give all values of the earlier "
            "command, too, or another --out"
        )
    return records


def record_of(member: Member, ended: Ended | None, earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A member's entry in sweep.json: how its last start ended, the seconds of all, and its summary if it is done.

    Exit code 0 without a summary is an error.
    """
    known = dict(earlier or {})
    if ended is not None:
        seconds = round((known.get("seconds") or 0.0) + ended.seconds, 1)
        known |= {"code": ended.code, "message": ended.message, "seconds": seconds, "latency_ms": None}
    code, summary = known.get("code"), files.read_json(RunDir(member.dir).summary)
    if code == ExitCode.DONE and summary is None:
        code, known["message"] = ExitCode.ERROR, "it ended without a summary.json"
    return {
        "name": member.name,
        "varied": member.varied,
        "command": list(member.command),
        "dir": str(member.dir),
        "code": code,
        "meaning": NOT_RUN if code is None else meaning(code),
        "message": known.get("message", ""),
        "seconds": known.get("seconds"),
        "latency_ms": known.get("latency_ms"),
        "summary": summary if code == ExitCode.DONE else None,
    }


def meaning(code: int) -> str:
    """An exit code as a word."""
    return ExitCode(code).name.lower() if code in list(ExitCode) else f"exit code {code}"


def points(records: Sequence[Mapping[str, Any]], x: Axis, y: Axis) -> list[Point]:
    """Means over seeds of the members that are done, in the order of the sweep, the best ones marked."""
    groups: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
    for record in records:
        at = (x.value(record), y.value(record))
        if at[0] is not None and at[1] is not None:
            key = tuple((k, v) for k, v in record["varied"].items() if k != "seed")
            groups.setdefault(key, []).append((at[0], at[1]))
    means = [(statistics.fmean(xs), statistics.fmean(ys)) for xs, ys in (zip(*v, strict=True) for v in groups.values())]
    best = pareto(means, x.higher_is_better, y.higher_is_better)
    ends = [(min(y for _, y in values), max(y for _, y in values)) for values in groups.values()]
    return [
        Point(dict(key), *at, *of, len(values), is_best)
        for (key, values), at, of, is_best in zip(groups.items(), means, ends, best, strict=True)
    ]


def pareto(values: Sequence[tuple[float, float]], x_higher: bool, y_higher: bool) -> list[bool]:
    """Of each (x, y), whether no other is at least as good in both and better in one."""
    signed = [(a if x_higher else -a, b if y_higher else -b) for a, b in values]
    return [not any(o[0] >= p[0] and o[1] >= p[1] and o != p for o in signed) for p in signed]


def write(out: Path, command: Sequence[str], records: Sequence[Mapping[str, Any]], x: Axis, y: Axis) -> None:
    """sweep.json, atomically: after every member, so that a sweep that dies has its record."""
    files.write_json(
        out / SWEEP_FILE,
        {
            "name": out.name,
            "command": list(command),
            "x": x.name,
            "y": y.name,
            "y_higher_is_better": y.higher_is_better,
            "versions": provenance.versions(),
            "members": list(records),
            "points": [asdict(point) for point in points(records, x, y)],
        },
    )


def table(records: Sequence[Mapping[str, Any]], x: Axis, y: Axis, title: str) -> Table:
    """One line for each member; a star where its point is on the Pareto front."""
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    keys = list(records[0]["varied"])
    ends = [key.rpartition(".")[2] for key in keys]
    columns = ["state", "minutes", "sparsity", "non-zero", *([x.name] if x.name == "latency" else []), y.name]
    for key, end in zip(keys, ends, strict=True):
        shown.add_column(end if [*ends, *columns].count(end) == 1 else key, overflow="fold")
    for column in columns:
        shown.add_column(column, justify="right")
    shown.add_column("front", justify="center")
    best = [point.varied for point in points(records, x, y) if point.best]
    for record in records:
        without_seed = {k: v for k, v in record["varied"].items() if k != "seed"}
        cells = [Text(record["varied"][key]) for key in keys]  # a list in brackets is no markup
        cells += [record["meaning"], _number(record["seconds"], "{:.1f}", 1 / 60)]
        cells += [_number(X_AXES["sparsity"].value(record), "{:.1%}")]
        cells += [_number(X_AXES["parameters"].value(record), "{:.2f} M", 1e-6)]
        cells += [_number(record["latency_ms"], "{:.1f} ms")] * (x.name == "latency")
        cells += [_number(y.value(record), "{:.4g}"), "*" if record["summary"] and without_seed in best else ""]
        shown.add_row(*cells)
    return shown


def _number(value: float | None, form: str, scale: float = 1.0) -> str:
    return "" if value is None else form.format(value * scale)
