"""Start N ranks of a script, wait for them, and hand back what rank 0 wrote.

Ranks are forked from one process that has imported what they need, which is most of the time that a start takes. That
process has no threads and no state of its own; how `pat train` starts ranks for users has its own tests.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pat.common.extensions import extensions_dir
from pat.launch.environment import free_port
from pat.zero.op_lock import load_ops_under_held_lock

ROOT = Path(__file__).resolve().parents[2]
# DeepSpeed imports the second when it builds its first engine, and torch's compiler with it.
PRELOADED = ["tests.distributed.harness", "deepspeed.runtime.zero.muon.muon_optimizer", "tests.distributed.frozen"]

ENVIRONMENT = {
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(PRELOADED)
_fresh = multiprocessing.get_context("spawn")
_asking = threading.Lock()  # a start asks all children how they ended; of two threads that ask, one is told 255


def fork_ranks(
    module: str, arguments: Sequence[str], logs: Sequence[Path], cwd: Path = ROOT, fresh: bool = False
) -> list[BaseProcess]:
    """Start `python -m module *arguments` as one rank per log, as a launcher would; `fresh`: not forked, for checks of
    memory, as the pages and the heap of the process that they are forked from would count."""
    os.environ |= ENVIRONMENT  # of the process that they are forked from, too
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(extensions_dir(os.environ)))
    world = {"WORLD_SIZE": str(len(logs)), "LOCAL_SIZE": str(len(logs)), "MASTER_ADDR": "127.0.0.1"}
    environment = os.environ | world | {"MASTER_PORT": str(free_port())}
    ranks: list[BaseProcess] = []
    context = _fresh if fresh else server
    for rank, log in enumerate(logs):
        log.touch()
        its = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        ranks.append(context.Process(target=_rank, args=(module, list(arguments), its, log, cwd)))
        with _asking:
            ranks[-1].start()
    return ranks


def _rank(module: str, arguments: list[str], environment: dict[str, str], log: Path, cwd: Path) -> None:
    with open(log, "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = [module, *arguments]
    load_ops_under_held_lock()  # some initialise DeepSpeed themselves
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _exit_code(rank: BaseProcess, timeout_s: float | None) -> int | None:
    """How it ended; None where that takes longer."""
    with _asking:
        code = rank.exitcode  # once it is read, the sentinel may say nothing for a moment
    if code is None and wait([rank.sentinel], timeout_s):
        with _asking:
            rank.join()
            code = rank.exitcode
    return code


def exit_codes(ranks: Sequence[BaseProcess], timeout_s: float) -> list[int | None]:
    """Wait for ranks; those that take too long are killed."""
    end = time.monotonic() + timeout_s
    try:
        return [_exit_code(rank, max(0.0, end - time.monotonic())) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            _exit_code(rank, None)


class Together:
    """Ranks as one process that ends when all have."""

    def __init__(self, ranks: Sequence[BaseProcess]) -> None:
        self.ranks = ranks

    def poll(self) -> int | None:
        """The exit code; None: some still run."""
        codes = [_exit_code(rank, 0.0) for rank in self.ranks]
        return None if None in codes else max(filter(None, codes), default=0)

    def wait(self, timeout_s: float) -> int:
        """The exit code. TimeoutExpired where it takes longer."""
        end = time.monotonic() + timeout_s
        for rank in self.ranks:
            _exit_code(rank, max(0.0, end - time.monotonic()))
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired("ranks", timeout_s)
        return code


def run_ranks(script: str, world_size: int, *args: str, timeout_s: float = 600, fresh: bool = False) -> Any:
    """Run `python -m script out.json *args` as `world_size` ranks; the content of out.json."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        logs = [Path(folder) / f"rank-{rank}.log" for rank in range(world_size)]
        codes = exit_codes(fork_ranks(script, [str(out), *args], logs, fresh=fresh), timeout_s)
        if any(code != 0 for code in codes):
            said = [
                f"--- rank {rank}, exit code {code}\n{log.read_text(errors='replace')[-6000:]}"
                for rank, (code, log) in enumerate(zip(codes, logs, strict=True))
            ]
            raise AssertionError("\n".join(said))
        return json.loads(out.read_text())
