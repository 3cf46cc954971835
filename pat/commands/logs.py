"""What a rank of a run has printed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pat.commands._help import command_parser
from pat.run.directory import ExitCode


def main(arguments: Sequence[str]) -> int:
    """`pat logs`."""
    parser = command_parser(
        prog="pat logs",
        description="Print the log of a rank, or of a Slurm job, of all starts.",
        epilog="examples:\n  pat logs runs/parity --follow\n  pat logs runs/parity --rank 3 --lines 50\n"
        "  pat logs runs/parity --job      what Slurm's script and srun said\n",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="run directory")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--rank", type=int, default=0, metavar="N", help="rank whose log to show (default: 0)")
    which.add_argument("--job", action="store_true", help="the newest Slurm job's own log")
    parser.add_argument("--lines", type=int, metavar="N", help="only the last N lines")
    parser.add_argument("--follow", action="store_true", help="go on until the run has ended, or Ctrl-C")
    options = parser.parse_args(arguments)
    if options.lines is not None and options.lines < 0:
        raise ValueError(f"--lines {options.lines}: give 0 or more")
    from pat.launch.logs import find, follow, last_lines

    path = find(options.run, None if options.job else options.rank)
    text, position = last_lines(path, options.lines)
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
        if options.follow:
            follow(options.run, path, position, sys.stdout)
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()
    except KeyboardInterrupt:
        pass
    return ExitCode.DONE
