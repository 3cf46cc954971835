"""How runs stand: step, phase, sparsity, state, restarts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pat.commands import _models
from pat.commands._help import command_parser
from pat.run.directory import ExitCode, RunDir, no_run


def main(arguments: Sequence[str]) -> int:
    """`pat status`: a table, a line a run."""
    parser = command_parser(
        prog="pat status",
        description="A table of runs: step, phase, sparsity, state, restarts and when they last logged something. It\n"
        "reads their directories, and asks Slurm for those that were submitted.",
        epilog="examples:\n  pat status                               all runs in ./runs, and of sweeps in ./sweeps\n"
        "  pat status /shared/first runs/parity\n",
    )
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", type=Path, help="run directories (default: those in runs/ and sweeps/)"
    )
    options = parser.parse_args(arguments)
    here = [*Path("runs").glob("*"), *Path("runs").glob("*/*"), *Path("sweeps").glob("*/*")]
    runs = [path for path in options.runs or sorted(here) if RunDir(path).config.exists()]
    if not runs and options.runs:
        raise no_run(options.runs[0])
    if not runs:
        where = "in ./runs (two levels deep) and none in ./sweeps"
        raise ValueError(f"there are no runs {where}: give run directories, which hold a config.yaml")
    if passed := [str(path) for path in options.runs if path not in runs]:
        print(f"pat: no run directories (no config.yaml), so left out: {', '.join(passed)}", file=sys.stderr)
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from pat.launch.status import ago, statuses

    table = Table(box=None, header_style="bold")
    table.add_column("run", overflow="fold")  # members of sweeps have long names
    for title in ("state", "step", "phase", "sparsity", "restarts", "updated"):
        table.add_column(title, no_wrap=True, justify="right" if title in ("step", "sparsity", "restarts") else "left")
    for status in statuses(runs):
        table.add_row(
            Text(str(status.run)),
            status.state,
            f"{status.step}/{status.num_steps}" if status.num_steps else str(status.step),
            status.phase or "-",
            "-"
            if status.sparsity is None
            else f"{status.sparsity:.3f}" + f" at {status.logged_step}" * status.is_older,
            str(status.restarts),
            ago(status.updated),
        )
    if sys.stdout.isatty():
        Console().print(table)
    else:
        _models.show([table])
    return ExitCode.DONE
