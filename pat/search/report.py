"""The result of a search: a table of its runs, and a sentence on what the envelope allows and what more would cost."""

from __future__ import annotations

import io
import shlex
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from pat.common.text import duration
from pat.envelope.guard import measured
from pat.envelope.spec import SLICES
from pat.run.directory import ExitCode
from pat.search.bisection import best
from pat.search.bisection import outside as first_outside
from pat.search.plan import DENSE, Plan, said

WIDTH = 110  # of the table, at least
Records = Mapping[int, dict[str, Any]]  # by index of the value


def result(plan: Plan, records: Records, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Plain values: what is allowed, the run that has it, and the nearest one that is outside."""
    inside = {index: record["inside"] for index, record in records.items()}
    allowed = best(inside)
    missed = {} if allowed is None else records[allowed].get("missed", {})
    at = None if allowed is None else records[allowed]
    allowed = None if missed else allowed
    outside = first_outside(inside)
    return {
        "allowed": None if allowed is None else plan.order[allowed],
        "asked": plan.order[-1],
        "sparsity": None if allowed is None else records[allowed]["sparsity"],
        "dir": None if allowed is None else records[allowed]["dir"],
        "further": None if outside is None else records[outside],
        "missed": at if missed else None,
        "runs": len(records),
        "steps": plan.fork_step + sum(record["steps_run"] for record in records.values()),
        "seconds": round(sum(seconds.values()), 1),
    }


def in_words(plan: Plan, found: Mapping[str, Any]) -> str:
    """`result` in sentences, a line each: what is allowed, what the search took, and where the run is."""
    word, allowed, further, missed = plan.quantity.word, found["allowed"], found["further"], found["missed"]
    if missed is not None:
        first = (
            f"envelope: quality allows {word} {missed['value']:g}, but there {_missed(missed)}, and less pruning gains "
            "less: nothing is inside all limits"
        )
    elif allowed is None:
        first = f"envelope: nothing is inside, not even {word} {plan.order[0]:g}: {_cost(further)}"
    elif further is None:
        first = f"envelope: {word} {found['asked']:g} is allowed, all that was asked for"
    else:
        first = (
            f"envelope: {word} {allowed:g} is allowed of the {found['asked']:g} asked for; at {further['value']:g} "
            f"{_cost(further)}"
        )
    runs = f"{found['runs']} run{'s' if found['runs'] > 1 else ''}"
    lines = [first, f"{runs}, {found['steps']:,} steps, {duration(found['seconds'])}"]
    if allowed is not None:
        where = shlex.quote(found["dir"])
        lines.append(f"the run is in {found['dir']}; as a Hugging Face folder: pat export {where} --out DIR")
    return "\n".join(lines)


def verdict(record: Mapping[str, Any]) -> str:
    """A run in a line, when it has ended."""
    inside = "inside" if record["inside"] else f"outside: {_cost(record)}"
    inside += f", but {_missed(record)}" if record.get("missed") else ""
    return f"{record['name']}: {inside}, after {duration(record['seconds'])}"


def shown(plan: Plan, records: Records) -> str:
    """A line for each run, from the least pruned to the most."""
    title = f"search {plan.out.name}: {plan.quantity.word} with {said(plan.config)}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    limited = list(plan.config.envelope)
    for column in ("budget", "sparsity", *limited, "inside", "steps", "time"):
        table.add_column(column, justify="right")
    for index in sorted(records):
        record = records[index]
        metrics = [
            _slices(record) if metric == SLICES else _figure(record["metrics"].get(metric)) for metric in limited
        ]
        gained = "quality only" if record.get("missed") else "yes"
        inside = gained if record["inside"] else "diverged" if record["code"] == ExitCode.DIVERGED else "no"
        cells = [f"{record['value']:g}", f"{record['sparsity']:.2%}", *metrics, inside]
        table.add_row(*cells, str(record["steps_run"]), duration(record["seconds"]))
    dense = next((record["dense_metrics"] for record in records.values() if record.get("dense_metrics")), None)
    if dense:
        table.add_section()
        cells = [_figure(dense.get(metric)) for metric in limited]
        table.add_row(DENSE, "0.00%", *cells, "", str(plan.fork_step), "")
    console = Console(file=io.StringIO(), width=max(Console().width, WIDTH))
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip()


def _cost(record: Mapping[str, Any]) -> str:
    """The figures outside the envelope, in words."""
    return measured(record) if record["outside"] else record["message"] or "the run diverged"


def _missed(record: Mapping[str, Any]) -> str:
    """Figures that pruning should have improved, but not enough."""
    return measured({**record, "outside": record["missed"]})


def _slices(record: Mapping[str, Any]) -> str:
    """How many of them are outside."""
    return (
        f"{sum('[' in name for name in record['outside'])} of {sum('[' in name for name in record['limits'])} outside"
    )


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
