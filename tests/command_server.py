"""`pat`, forked for each call from one process that has imported what commands need: most of what a call takes.

    python -m tests.command_server FOLDER      serves FOLDER/bin/pat, a script to have first in PATH, until it is killed

The script hands its arguments, environment and directory over and gives back output and exit code. Runs of one rank
start theirs by a fork, too, in place of DeepSpeed's launcher.
"""

from __future__ import annotations

import importlib
import os
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any

PRELOADED = [
    "tests.distributed.harness", "mlflow", "sqlalchemy", "alembic", "pat.export.export", "pat.gate.measure",
    "pat.compare.on_prompts", "pat.registry.mlflow_backend", "pat.report.build", "pat.profiling.run", "scipy.stats",
    "pat.train",
]  # fmt: skip
SCRIPT = """\
#!/usr/bin/env bash
call=$(mktemp -d "{folder}/calls/XXXXXX")
printf '%s\\0' "$@" >"$call/arguments"
env -0 >"$call/environment"
pwd >"$call/directory"
mkfifo "$call/code"
echo "$call" >"{folder}/requests"
read -r code <"$call/code"
cat "$call/output"
exit "$code"
"""
RANK = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}


def serve(folder: Path) -> None:
    """One call after another."""
    for name in PRELOADED:
        importlib.import_module(name)
    (folder / "calls").mkdir()
    (folder / "bin").mkdir()
    script = folder / "bin" / "pat"
    os.mkfifo(folder / "requests")
    script.write_text(SCRIPT.format(folder=folder))
    script.chmod(0o755)
    (folder / "ready").touch()
    while True:
        for line in (folder / "requests").read_text().splitlines():
            call = Path(line)
            child = os.fork()
            if not child:
                os._exit(_command(call))
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            (call / "code").write_text(f"{code if code >= 0 else 128 - code}\n")


def _command(call: Path) -> int:
    from pat import cli
    from pat.launch import single_node

    single_node.launch = _rank
    output = os.open(call / "output", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    arguments = (call / "arguments").read_text().split("\0")[:-1]
    os.environ.clear()
    os.environ.update(dict(item.split("=", 1) for item in (call / "environment").read_text().split("\0") if item))
    os.chdir((call / "directory").read_text().rstrip("\n"))
    sys.argv = ["pat", *arguments]
    code = 0
    try:
        cli.main(arguments)
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else int(bool(leave.code))
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _rank(run_dir: Path, config: Any) -> int:
    """In place of `pat.launch.single_node.launch`."""
    from pat.launch.environment import free_port
    from pat.launch.single_node import rank_variables
    from pat.run.directory import read_exit

    child = os.fork()
    if not child:
        os.environ.update(rank_variables(config) | RANK | {"MASTER_PORT": str(free_port())})
        sys.argv = ["pat.worker", str(run_dir)]
        code = 1
        try:
            runpy.run_module("pat.worker", run_name="__main__")
        except SystemExit as leave:
            code = leave.code if isinstance(leave.code, int) else 1
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)
    os.waitpid(child, 0)
    ended = read_exit(run_dir)
    return ended["code"] if ended else 1


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
