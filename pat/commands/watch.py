"""Look at runs while they train: their report as a page that keeps itself up to date, or on the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from pat.commands._help import command_parser, exit_codes
from pat.run.directory import ExitCode

EXAMPLES = """\
examples:
  pat watch runs/pruned                   prints an address to open in a browser; Ctrl-C ends it
  pat watch runs/dense runs/pruned --every 30
  pat watch runs/pruned --tui             on the terminal: phase, step, sparsity, loss, time left; q ends it
  ssh -L 8000:localhost:8000 HOST pat watch runs/pruned --port 8000       of a run on another machine

The page is read-only. Its address holds a token: only those who have it see the page.

"""


def main(arguments: Sequence[str]) -> int:
    """`pat watch`."""
    parser = command_parser(
        prog="pat watch",
        usage="pat watch RUN [RUN|SWEEP|VARIANT|JSON ...] [options]",
        description="Serve the page of `pat report` on this machine; browsers load it again by themselves until the\n"
        "runs have ended. --tui shows them on the terminal instead: pip install 'pat-deepspeed[tui]'",
        epilog=EXAMPLES + exit_codes(),
    )
    parser.add_argument("given", nargs="+", type=Path, metavar="RUN", help="runs, or whatever else `pat report` takes")
    parser.add_argument("--tui", action="store_true", help="show runs on the terminal, and serve nothing")
    parser.add_argument("--every", type=int, metavar="SECONDS", help="time between reloads (default: 10; with --tui 2)")
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1, this machine only)")
    parser.add_argument("--port", type=int, help="port to listen on (default: a free one)")
    options = parser.parse_intermixed_args(arguments)
    if options.every is not None and options.every < 1:
        raise ValueError(f"--every {options.every}: give 1 second or more")
    if options.port is not None and not 0 <= options.port < 65536:
        raise ValueError(f"--port {options.port}: give 0 to 65535")
    return _on_terminal(options) if options.tui else _serve(options)


def _on_terminal(options: argparse.Namespace) -> int:
    for name in ("host", "port"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name} would be ignored: --tui serves nothing")
    if find_spec("textual") is None:
        raise ValueError("--tui needs textual: pip install 'pat-deepspeed[tui]', or leave it out")
    from pat.report.terminal import Followed, Watch, view
    from pat.run.directory import RunDir

    for run in options.given:
        view(run, Followed(RunDir(run).metrics))  # so that unreadable files are reported now
    if not sys.stdout.isatty():
        raise ValueError("--tui needs a terminal, and the output goes elsewhere: `pat status` prints lines")
    Watch(options.given, options.every or 2).run()
    return ExitCode.DONE


def _serve(options: argparse.Namespace) -> int:
    from pat.report.live import Live, Server

    host, port = options.host or "127.0.0.1", options.port or 0
    live = Live(options.given, options.every or 10)
    live.page()  # so that unreadable files are reported now
    try:
        server = Server(live, host, port)
    except OSError as error:
        raise ValueError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    with server:
        print(f"open {server.address}\nCtrl-C ends it", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass
    return ExitCode.DONE
