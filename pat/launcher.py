"""Start the ranks of one machine through DeepSpeed's launcher, and answer for them until the last has left.

DeepSpeed's launcher does not pass signals on (SIGUSR1 kills it and orphans the ranks, SIGTERM gives them 30 s one
after another) and returns 1 whatever the ranks returned. So signals go from here to each rank, never to the launcher,
and the exit code comes from the run directory.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pat
from pat import process, run
from pat.config import Config
from pat.process import Process, RankRecord
from pat.rank import ORPHAN_GRACE_S, restore_terminal
from pat.run import ExitCode, RunDir

GRACE_S = 15.0  # for the others to leave, once one rank is lost
_FORWARDED = {signal.SIGINT: signal.SIGTERM, signal.SIGTERM: signal.SIGTERM, signal.SIGUSR1: signal.SIGUSR1}


def launch(run_dir: Path, config: Config, rank_program: Sequence[str] = ("--module", "pat.rank")) -> int:
    """Run all ranks of a run, whose directory the caller holds, on this machine; returns the run's exit code."""
    environment = rank_variables(config)
    RunDir(run_dir).exit.unlink(missing_ok=True)
    directory = Path(environment["TORCH_EXTENSIONS_DIR"])
    ours = directory == extensions_dir(environment)
    if environment.get("DS_ACCELERATOR") == "cpu" and not list(directory.glob("**/deepspeed_shm_comm.so")):
        print(f"building DeepSpeed's CPU communication op, once, in {directory} (about a minute)", flush=True)
    with extensions_in_use(directory) if ours else contextlib.nullcontext():
        launcher = subprocess.Popen(
            [*_deepspeed_command(config.engine.world_size), *rank_program, str(run_dir)],
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=process.die_with_parent(signal.SIGKILL),
        )
        return _Watch(run_dir, launcher).until_all_have_left()


def rank_variables(config: Config) -> dict[str, str]:
    """The environment of a rank: accelerator, threads, where compiled extensions go."""
    import torch

    environment = dict(os.environ)
    engine = config.engine
    if not torch.cuda.is_available():
        environment.setdefault("DS_ACCELERATOR", "cpu")
    if engine.threads_per_rank:
        environment["OMP_NUM_THREADS"] = str(engine.threads_per_rank)
    environment.setdefault("OMP_NUM_THREADS", str(_threads(environment, engine.world_size)))
    environment.setdefault("TORCH_EXTENSIONS_DIR", str(extensions_dir(environment)))
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Ranks run the package that runs here, not a folder called `pat` where the user happens to stand.
    environment["PYTHONSAFEPATH"] = "1"
    root = Path(pat.__file__).resolve().parent.parent
    if root.name not in ("site-packages", "dist-packages"):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), environment.get("PYTHONPATH")]))
    return environment


def _threads(environment: Mapping[str, str], world_size: int) -> int:
    """Cores of this machine / ranks on it, by the launcher's own numbers where it gives them."""
    if "SLURM_CPUS_PER_TASK" in environment:
        return int(environment["SLURM_CPUS_PER_TASK"])
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0].partition(",")[0]  # `8(x2),4`
    ranks = environment.get("LOCAL_WORLD_SIZE") or environment.get("LOCAL_SIZE") or tasks or world_size
    return max(1, len(os.sched_getaffinity(0)) // int(ranks))


def extensions_dir(environment: Mapping[str, str]) -> Path:
    """Where DeepSpeed's compiled operations go: two versions in one directory break each other's."""
    parts = [sys.prefix, environment.get("DS_ACCELERATOR", "")]
    parts += [importlib.metadata.version(name) for name in ("deepspeed", "torch")]
    cache = Path(environment.get("PAT_CACHE") or "~/.cache/pat").expanduser()
    return cache / "torch_extensions" / hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


@contextlib.contextmanager
def extensions_in_use(directory: Path) -> Iterator[None]:
    """A rank that was killed while it compiled leaves a `lock` file for which every later rank would wait for ever:
    remove it when no other run uses this directory, which only pat uses."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".in-use", "a") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for lock in [*directory.glob("*/lock"), *directory.glob("*/*/lock")]:
                lock.unlink(missing_ok=True)
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def _deepspeed_command(world_size: int) -> list[str]:
    """DeepSpeed's per-machine launcher. Its front end (`deepspeed`) would do the same after a second import, but
    ignores CUDA_VISIBLE_DEVICES when told how many ranks to start."""
    import torch

    devices: list[int | str] = list(range(world_size))
    if torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        here = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
        if world_size > len(here):
            raise ValueError(
                f"engine.world_size={world_size} but this machine shows {len(here)} GPUs: set at most {len(here)}, "
                "or start `pat train` on several machines with deepspeed, torchrun or srun"
            )
        devices = [int(name) if name.strip().isdigit() else name for name in here[:world_size]]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world = base64.urlsafe_b64encode(json.dumps({"localhost": devices}).encode()).decode()
    options = [f"--world_info={world}", "--master_addr=127.0.0.1", f"--master_port={port}", "--no_local_rank"]
    return [sys.executable, "-u", "-m", "deepspeed.launcher.launch", *options, "--log_level=critical"]


class _Watch:
    """The ranks of one start: forwards signals, notices who is lost, ends the rest, finds the exit code."""

    def __init__(self, run_dir: Path, launcher: subprocess.Popen[bytes]) -> None:
        self.run_dir = run_dir
        self.launcher = launcher
        self.old_bytes = {log: log.stat().st_size for log in RunDir(run_dir).logs.glob("rank-*.log")}  # earlier starts
        self.signals: list[int] = []  # received here
        self.delivered: dict[Process, int] = {}  # how many of them each rank has been sent
        self.failed: RankRecord | None = None
        self.deadline: float | None = None

    def until_all_have_left(self) -> int:
        """Poll until the launcher and every rank have ended."""
        with self._handlers():
            try:
                while True:
                    over = self._launcher_ended()
                    ranks = process.rank_records(self.run_dir)
                    living = [rank for rank in ranks if rank.process.alive]
                    if len(living) < len(ranks):  # what a rank says last, it may have said after it was read above
                        gone = {rank.rank for rank in ranks} - {rank.rank for rank in living}
                        ranks = [rank for rank in process.rank_records(self.run_dir) if rank.rank in gone] + living
                    if over and not living:
                        break
                    self._forward(living)
                    if self._interrupted_twice():
                        self._kill(living)
                        return ExitCode.INTERRUPTED
                    self._end_the_rest(ranks, living, over)
                    time.sleep(0.1)
            finally:
                self._sweep()
                restore_terminal(sys.stdout)
        return self._result(process.rank_records(self.run_dir))

    @contextlib.contextmanager
    def _handlers(self) -> Iterator[None]:
        try:
            before = {
                number: signal.signal(number, lambda received, _frame: self.signals.append(received))
                for number in _FORWARDED
            }
        except ValueError:  # not the main thread: whoever owns it forwards
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _interrupted_twice(self) -> bool:
        return self.signals.count(signal.SIGINT) > 1

    def _forward(self, living: list[RankRecord]) -> None:
        if self.signals and not self.delivered:
            name = signal.Signals(self.signals[0]).name
            _say(f"{name}: the ranks save their state and leave" + (" (again: end now)" if name == "SIGINT" else ""))
        for rank in living:  # a rank that appears later gets the earlier signals too
            for number in self.signals[self.delivered.get(rank.process, 0) :]:
                rank.process.send(_FORWARDED[signal.Signals(number)])
            self.delivered[rank.process] = len(self.signals)

    def _end_the_rest(self, ranks: list[RankRecord], living: list[RankRecord], launcher_ended: bool) -> None:
        if self.deadline is None:
            gone = [rank for rank in ranks if rank not in living]
            # One that died comes before those that left with an error: they may have left because it died.
            lost = [rank for rank in gone if rank.code is None]
            lost += sorted((rank for rank in gone if rank.code in (1, 2, 130)), key=lambda rank: rank.time)
            if not lost and not (launcher_ended and living):
                return
            self.failed = lost[0] if lost else None
            # With a rank lost the others cannot finish a collective; with only the launcher lost, all can save.
            self.deadline = time.monotonic() + (GRACE_S if lost else ORPHAN_GRACE_S)
            for rank in living:
                rank.process.send(signal.SIGTERM)
        elif time.monotonic() > self.deadline:
            self._kill(living)

    def _kill(self, living: list[RankRecord]) -> None:
        for rank in living:
            rank.process.send(signal.SIGKILL)
        self._sweep()

    def _launcher_ended(self) -> bool:
        # WNOWAIT keeps the pid, and with it the process group, ours until the sweep.
        if self.launcher.returncode is not None:
            return True
        return os.waitid(os.P_PID, self.launcher.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _sweep(self) -> None:
        """End what is left of the process group: the launcher, data workers, a rank that never said it exists."""
        if self.launcher.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.launcher.pid, signal.SIGKILL)
            self.launcher.wait()

    def _result(self, ranks: list[RankRecord]) -> int:
        written = run.read_exit(self.run_dir)
        if written and not self.failed:
            if written["message"]:
                _say(written["message"])
            return int(written["code"])
        if self.failed is None:
            _say(
                "no rank said how it ended: the launcher died" if ranks else "the launcher died before the ranks began"
            )
            self._show_log(0)
            return ExitCode.ERROR
        failed = self.failed
        log = RunDir(self.run_dir).log(failed.rank)
        if failed.code is None:
            message = f"rank {failed.rank} died (pid {failed.process.pid}, killed or crashed)"
            _say(f"{message}; the end of {log}:")
            self._show_log(failed.rank)
        else:
            message = f"rank {failed.rank}: {failed.message}"
            _say(f"{message} (log: {log})")
        if written and written["code"] in (ExitCode.DONE, ExitCode.PREEMPTED):
            return int(written["code"])  # the state was complete before this rank was lost
        code = ExitCode.ERROR if failed.code is None else failed.code
        with contextlib.suppress(OSError):  # the disk may be full
            run.write_exit(self.run_dir, code, message)
        return code

    def _show_log(self, rank: int, lines: int = 12) -> None:
        """The end of what a rank has logged in this start."""
        log = RunDir(self.run_dir).log(rank)
        with contextlib.suppress(OSError):
            said = log.read_bytes()[self.old_bytes.get(log, 0) :].decode(errors="replace")
            print("\n".join(said.splitlines()[-lines:]), file=sys.stderr, flush=True)


def _say(message: str) -> None:
    start = "\n" if sys.stderr.isatty() else ""  # a bar may stand on the line
    print(f"{start}pat: {message}", file=sys.stderr, flush=True)
