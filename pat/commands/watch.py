"""Look at runs while they train: their report as a page on this machine that keeps itself up to date."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pat.commands._help import command_parser, exit_codes
from pat.run.directory import ExitCode

EXAMPLES = """\
examples:
  pat watch runs/pruned                   prints an address to open in a browser; Ctrl-C ends it
  pat watch runs/dense runs/pruned --every 30
  ssh -L 8000:localhost:8000 HOST pat watch runs/pruned --port 8000       of a run on another machine

The page is read-only. Its address holds a token: only only those who have it see the page.

"""


def main(arguments: Sequence[str]) -> int:
    """`pat watch`."""
    parser = command_parser(
        prog="pat watch",
        usage="pat watch RUN [RUN|SWEEP|VARIANT|JSON ...] [options]",
        description="Serve the page of `pat report` on this machine; browsers load it again by themselves until the\n"
        "runs have ended.",
        epilog=EXAMPLES + exit_codes(),
    )
    parser.add_argument("given", nargs="+", type=Path, metavar="RUN", help="what pat report takes")
    parser.add_argument("--every", type=int, default=10, metavar="SECONDS", help="between loads (default: 10)")
    parser.add_argument("--host", default="127.0.0.1", help="to listen on (default: 127.0.0.1, this machine only)")
    parser.add_argument("--port", type=int, default=0, help="default: one that is free")
    options = parser.parse_intermixed_args(arguments)
    if options.every < 1:
        raise ValueError(f"--every {options.every}: give 1 second or more")
    if not 0 <= options.port < 65536:
        raise ValueError(f"--port {options.port}: give 0 to 65535")
    from pat.report.live import Live, Server

    live = Live(options.given, options.every)
    live.page()  # what cannot be read is said now
    try:
        server = Server(live, options.host, options.port)
    except OSError as error:
        raise ValueError(f"cannot listen on {options.host}:{options.port}: {error.strerror or error}") from None
    with server:
        print(f"open {server.address}\nCtrl-C ends it", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass
    return ExitCode.DONE
