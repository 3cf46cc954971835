"""Several machines by a hostfile: pdsh starts `pat.launch.node_agent` on each, which starts DeepSpeed's launcher there.

Pdsh runs a script in the run directory, which all machines share. The environment is in that script, so that no key is
on a command line. Signals go to the hosts through a file beside it, and the fate of the ranks comes back through the
run directory. Each host notices on its standard input when this process, pdsh or another host is lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pat.common.files import write_json
from pat.config.hostfile import read_hostfile
from pat.launch import node_agent, process
from pat.launch.environment import free_port
from pat.launch.process import RankRecord
from pat.launch.single_node import package_variables
from pat.launch.supervisor import GRACE_S, Supervisor, failures
from pat.run.directory import RunDir
from pat.run.provenance import versions
from pat.schema import Config

CHECK_TIMEOUT_S = 300.0  # ranks that an earlier start left behind have two minutes to save
_SSH = "-o BatchMode=yes -o ConnectTimeout=20 -o ServerAliveInterval=15 -o ServerAliveCountMax=4"
# Variables of a machine or of a session, not of the run.
_NOT_SENT = re.compile(
    r"(HOME|USER|LOGNAME|MAIL|SHELL|PWD|OLDPWD|SHLVL|_|TMPDIR|TMP|TEMP|HOST|HOSTNAME|DISPLAY|XAUTHORITY|TERM|"
    r"UID|EUID|PPID|SHELLOPTS|BASHOPTS|CUDA_VISIBLE_DEVICES|RANK|LOCAL_RANK|WORLD_SIZE)|"
    r"(SSH|XDG_RUNTIME|XDG_SESSION|DBUS|PDSH|TERM)_.*"
)


def check(run_dir: Path, config: Config) -> None:
    """Raises ValueError unless each host answers, sees the run directory and has the same packages; ends ranks that an
    earlier start of this run has left there."""
    file = config.engine.hostfile
    assert file
    hosts = read_hostfile(file)
    _check_names(hosts, file)
    if not shutil.which("pdsh"):
        raise ValueError("engine.hostfile needs pdsh, which is not on this machine (Debian: apt install pdsh)")
    with _script(run_dir, config) as script:
        command = _pdsh(hosts, script, "check")
        asked = subprocess.Popen(
            command, env=_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        try:
            output = list(asked.communicate(timeout=CHECK_TIMEOUT_S))
        except subprocess.TimeoutExpired as error:  # some may have answered: bytes, in spite of `text`
            output = [(said or b"").decode(errors="replace") for said in (error.stdout, error.stderr)]
        finally:
            process.end_group(asked)
    here = versions()
    for node, name in enumerate(hosts):
        answer = re.search(rf"^[^:]+: pat-host {node} (.*)$", output[0], re.MULTILINE)
        if not answer:
            said = [line.partition(": ")[2] for line in output[1].splitlines() if _is_from(name, line)]
            raise ValueError(
                f"engine.hostfile={file}: {name} cannot start ranks ({said[-1] if said else 'no answer'}): ssh must "
                "reach it without a password, and it must have this Python environment and the run directory under "
                "the same paths"
            )
        there = json.loads(answer[1])
        if there | {"git": ""} != here | {"git": ""}:  # git may be on one machine only
            key = next(key for key in here | there if key != "git" and here.get(key) != there.get(key))
            raise ValueError(f"{name} has {key} {there.get(key)}, this machine {here.get(key)}: install the same")


def _check_names(hosts: Mapping[str, int], file: str, environ: Mapping[str, str] = os.environ) -> None:
    """ValueError where the others could not find the first host, or other GPUs are meant than ranks would take."""
    first = next(iter(hosts))
    elsewhere = [name for name in hosts if not _is_here(name)]
    if _is_here(first) and elsewhere and not environ.get("MASTER_ADDR"):
        raise ValueError(
            f"engine.hostfile={file}: {first} is where {elsewhere[0]} would look for rank 0, on itself: write this "
            "machine's name as the others know it, or set MASTER_ADDR to that"
        )
    visible = [name.strip() for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    if visible != list(map(str, range(len(visible)))):
        raise ValueError(
            f"CUDA_VISIBLE_DEVICES={','.join(visible)} names GPUs of this machine, and engine.hostfile takes the first "
            "`slots` of every host: unset it, or start the ranks by torchrun or srun"
        )


def launch(run_dir: Path, config: Config, rank_program: Sequence[str] = ("--module", "pat.worker")) -> int:
    """Run all ranks of a run, whose directory the caller holds, on all hosts; returns the run's exit code."""
    assert config.engine.hostfile
    hosts = read_hostfile(config.engine.hostfile)
    RunDir(run_dir).exit.unlink(missing_ok=True)
    RunDir(run_dir).logs.mkdir(exist_ok=True)
    with _script(run_dir, config, rank_program) as script, open(RunDir(run_dir).logs / "hosts.log", "ab") as log:
        pdsh = subprocess.Popen(
            _pdsh(hosts, script, "start", "-k", "-N"),
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
            preexec_fn=process.die_with_parent(signal.SIGKILL),
        )
        return _AllHosts(run_dir, pdsh, Path(log.name), log.tell()).until_all_have_left()


def _is_here(host: str) -> bool:
    return host == "localhost" or host.startswith("127.")


def _is_from(host: str, line: str) -> bool:
    """Pdsh labels a line with the host, perhaps without its domain."""
    label = line.partition(": ")[0]
    return label == host or label == host.partition(".")[0]


def _environment() -> dict[str, str]:
    """Pdsh's own; the user's options come first, since ssh takes the first of each."""
    append = " ".join(filter(None, [os.environ.get("PDSH_SSH_ARGS_APPEND"), _SSH]))
    return os.environ | {"PDSH_SSH_ARGS_APPEND": append}


def _pdsh(hosts: Mapping[str, int], script: Path, action: str, *options: str) -> list[str]:
    command = f"sh {shlex.quote(str(script))} ".replace("%", "%%") + f"%n {action}"
    return ["pdsh", "-R", "ssh", "-S", "-f", str(len(hosts)), *options, "-w", ",".join(hosts), command]


@contextlib.contextmanager
def _script(run_dir: Path, config: Config, rank_program: Sequence[str] = ()) -> Iterator[Path]:
    """The script that each host runs, for as long as it is needed: `sh start.sh NODE ACTION`, with this process's
    environment."""
    folder = RunDir(run_dir.resolve()).signals.parent
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    assert config.engine.hostfile
    hosts = read_hostfile(config.engine.hostfile)
    sent = {key: value for key, value in os.environ.items() if key.isidentifier() and not _NOT_SENT.fullmatch(key)}
    sent |= package_variables(sent)
    if config.engine.threads_per_rank:
        sent["OMP_NUM_THREADS"] = str(config.engine.threads_per_rank)
    address = os.environ.get("MASTER_ADDR") or next(iter(hosts))
    port = os.environ.get("MASTER_PORT") or free_port()
    words = [sys.executable, "-u", "-m", "pat.launch.node_agent", run_dir.resolve(), json.dumps(hosts), address, port]
    lines = [f"export {key}={shlex.quote(value)}" for key, value in sent.items()]
    lines += [
        f"cd {shlex.quote(os.getcwd())} || exit 1",
        f'exec {shlex.join(map(str, words))} "$@" {shlex.join(rank_program)}',
    ]
    script = folder / node_agent.SCRIPT
    script.unlink(missing_ok=True)
    try:
        with open(os.open(script, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", errors="surrogateescape") as file:
            file.write("\n".join(lines) + "\n")
        write_json(RunDir(run_dir).signals, [])  # before the first signal: file systems cache absence
        yield script
    finally:
        script.unlink(missing_ok=True)


class _AllHosts(Supervisor):
    """All hosts; the launcher is pdsh. Each host watches its own ranks and says in the run directory who is lost."""

    def __init__(self, run_dir: Path, pdsh: subprocess.Popen[bytes], log: Path, old_bytes: int) -> None:
        super().__init__(run_dir, pdsh)
        self.grace_s = GRACE_S + 15.0  # the hosts' own comes first
        self.old_bytes[log] = old_bytes
        self.hosts_log = log
        self.told = 0
        self.look_at = 0.0

    def records(self) -> list[RankRecord]:
        """None: this process can send no signal to ranks elsewhere."""
        return []

    def forward(self, living: list[RankRecord]) -> None:
        """Write signals into the file that each host reads."""
        self.announce()
        if len(self.signals) > self.told:
            self.told = len(self.signals)
            write_json(RunDir(self.run_dir).signals, list(map(int, self.signals[: self.told])))

    def lost(self, gone: list[RankRecord]) -> list[RankRecord]:
        """The lost ranks, according to what hosts and ranks have written."""
        if time.monotonic() < self.look_at:
            return []
        self.look_at = time.monotonic() + 2.0
        return failures(process.rank_records(self.run_dir))

    def kill(self, living: list[RankRecord]) -> None:
        """Give pdsh some seconds, as the hosts have been told, then end it; without it they end their ranks."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.launcher.wait(10)
        super().kill(living)

    def result(self) -> int:
        """The run's exit code."""
        failed = failures(process.rank_records(self.run_dir))
        self.failed = failed[0] if failed else None
        return super().result()

    def why_nobody_said(self) -> str:
        """The first host that pdsh has lost."""
        said = self.hosts_log.read_bytes()[self.old_bytes[self.hosts_log] :].decode(errors="replace")
        print(said, end="", file=sys.stderr)
        lost = re.search(r"^pdsh@[^:]+: (\S+): ssh exited with exit code (\d+)", said, re.MULTILINE)
        reason = f"lost {lost[1]} (ssh: {lost[2]})" if lost else "pdsh ended"
        return f"{reason} before the ranks said how they ended; log: {self.hosts_log}"
