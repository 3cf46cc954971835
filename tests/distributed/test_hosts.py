"""Several machines by a hostfile, with a real pdsh and a real sshd each: loopback addresses, host names and process
numbers of their own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pat.launch import process
from pat.run import directory
from tests.distributed import runs
from tests.distributed.test_launcher import interrupt_twice, until
from tests.install import may_install

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.real_processes]

PORT = 17022
SSHD = """
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
HostKey {0}/hostkey
AuthorizedKeysFile {0}/key.pub
"""
DUMMY = Path(__file__).with_name("dummy_rank.py")
FRONT_END = """
import sys
from pathlib import Path
from pat.launch import multi_node
from pat.schema import Config, EngineConfig
config = Config(engine=EngineConfig(hostfile=sys.argv[2], threads_per_rank=1))
sys.exit(multi_node.launch(Path(sys.argv[1]), config, [sys.argv[3]]))
"""


class Host:
    """A machine, as far as ssh and processes can tell."""

    def __init__(self, folder: Path, number: int) -> None:
        self.name, self.address = f"host-{number}", f"127.0.0.{20 + number}"
        self.command = (
            f"hostname {self.name} && exec /usr/sbin/sshd -D -f {folder}/sshd_config "
            f"-o Port={PORT} -o ListenAddress={self.address}"
        )
        self.start()

    def start(self) -> None:
        spaces = ("--uts", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc")
        die = process.die_with_parent(signal.SIGKILL)
        self.process = subprocess.Popen(
            ["unshare", *spaces, "sh", "-c", self.command], stdin=subprocess.DEVNULL, preexec_fn=die
        )

    def kill(self) -> None:
        """With everything that runs on it."""
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Host]]:
    """Two machines that this one reaches by ssh; skips where that cannot be."""
    if not may_install():
        pytest.skip("two hosts with an sshd each need root on Debian or Ubuntu")
    if subprocess.run(["unshare", "--uts", "--pid", "--mount", "--fork", "true"], capture_output=True).returncode:
        pytest.skip("two hosts on one machine need UTS, PID and mount name spaces, which are not allowed here")
    install = [Path(__file__).parents[1] / "install.sh", "pdsh", "openssh-server", "openssh-client"]
    subprocess.run(install, check=True, stdin=subprocess.DEVNULL)
    Path("/run/sshd").mkdir(exist_ok=True)
    folder = tmp_path_factory.mktemp("ssh")
    for name in ("hostkey", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    (folder / "sshd_config").write_text(SSHD.format(folder))
    found = [Host(folder, number) for number in (1, 2)]
    options = f"-p {PORT} -i {folder}/key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PDSH_SSH_ARGS_APPEND", f"{options} -o LogLevel=ERROR")
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")  # reaches the ranks, or gloo looks for host-1 in vain
        try:
            yield found
        finally:
            for host in found:
                host.kill()


@pytest.fixture(scope="module")
def hostfile(hosts: list[Host], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hostfile") / "hostfile"
    path.write_text("".join(f"{host.address} slots=1\n" for host in hosts))
    return path


def left_in(run_dir: Path) -> list[str]:
    """Processes of a run: those of the hosts are seen from here, under other numbers."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if str(run_dir) in words:
            found.append(" ".join(words))
    return found


def test_preempted_and_resumed_over_two_hosts(
    hostfile: Path, hosts: list[Host], undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    run_dir = tmp_path / "100% of it"
    overrides = [f"engine.hostfile={hostfile}"]
    start = runs.Start(run_dir, *overrides)
    start.until(lambda: any(line["step"] >= 7 for line in runs.losses(run_dir)))
    assert [record.process.host for record in process.rank_records(run_dir)] == [host.name for host in hosts]
    script = run_dir / "hosts" / "start.sh"
    assert script.stat().st_mode & 0o077 == 0, "keys are in it"
    start.send("parent", signal.SIGTERM)
    assert start.process.wait(runs.PATIENCE_S) == directory.ExitCode.PREEMPTED, start.text()
    until(lambda: not left_in(run_dir))
    step = runs.losses(run_dir)[-1]["step"]
    assert runs.latest(run_dir) == step >= 7 and f"stopped on request at step {step}, all saved" in start.text()
    assert not script.exists()
    again = runs.Start(run_dir, *overrides)
    assert again.process.wait(runs.PATIENCE_S) == 0, again.text()
    assert runs.result(run_dir) == undisturbed
    until(lambda: not left_in(run_dir))


class Dummies:
    """Ranks that hold no model, one on each host."""

    def __init__(self, run_dir: Path, hostfile: Path, **behaviour: str) -> None:
        self.run_dir = run_dir
        (run_dir / "behaviour.json").write_text(json.dumps({key.removeprefix("r"): v for key, v in behaviour.items()}))
        self.process = subprocess.Popen(
            [sys.executable, "-c", FRONT_END, str(run_dir), str(hostfile), str(DUMMY)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def until_both_run(self) -> None:
        until(lambda: len(process.rank_records(self.run_dir)) == 2)
        time.sleep(0.5)

    def end(self) -> tuple[int, str]:
        """The exit code and what was said; fails if anything of it is left soon afterwards."""
        output, _ = self.process.communicate(timeout=runs.PATIENCE_S)
        until(lambda: not left_in(self.run_dir))
        return self.process.returncode, output


def test_a_rank_that_dies_ends_those_on_other_hosts_and_is_named(hostfile: Path, tmp_path: Path) -> None:
    code, output = Dummies(tmp_path, hostfile, r0="wait", r1="die").end()
    assert "rank 1 died on host-2" in output and "rank 1 of 2 does: die" in output, output
    assert (tmp_path / "signal-0").read_text() == str(int(signal.SIGTERM)) and code == directory.ExitCode.PREEMPTED


def test_a_host_that_dies_ends_the_others(hostfile: Path, hosts: list[Host], tmp_path: Path) -> None:
    start = Dummies(tmp_path, hostfile, **{"*": "wait"})
    start.until_both_run()
    hosts[0].kill()
    try:
        code, output = start.end()
    finally:
        hosts[0].start()
    assert code == directory.ExitCode.ERROR and f"lost {hosts[0].address}" in output, output
    assert (tmp_path / "signal-1").exists()


def test_killing_the_command_leaves_nobody(hostfile: Path, tmp_path: Path) -> None:
    start = Dummies(tmp_path, hostfile, **{"*": "wait"})
    start.until_both_run()
    start.process.kill()
    assert start.end()[0] == -signal.SIGKILL
    assert (directory.read_exit(tmp_path) or {})["code"] == directory.ExitCode.PREEMPTED, "they saved first"


def test_a_second_interrupt_ends_everything_at_once(hostfile: Path, tmp_path: Path) -> None:
    start = Dummies(tmp_path, hostfile, **{"*": "stuck"})
    start.until_both_run()
    said = interrupt_twice(start.process)
    code, output = start.end()
    assert code == directory.ExitCode.INTERRUPTED and "SIGINT: the ranks save their state" in said, said + output


def test_a_host_that_does_not_answer(hosts: list[Host], tmp_path: Path) -> None:
    path = tmp_path / "hostfile"
    path.write_text(f"{hosts[0].address} slots=1\n127.0.0.29 slots=1\n")
    start = runs.Start(tmp_path / "run", f"engine.hostfile={path}")
    assert start.process.wait(runs.PATIENCE_S) == directory.ExitCode.BAD_INPUT
    assert f"{path}: 127.0.0.29 cannot start ranks (ssh: connect to host 127.0.0.29 port" in start.text()
    assert "Traceback" not in start.text() and not (tmp_path / "run" / "config.yaml").exists()
