"""The registry on a real `mlflow server`: the commands, two promotions at once, and a server that is killed and comes
back. It is mlflow-skinny's, with what the whole package would add for REST calls; the web page, which is not in it, is
looked at in tests/browser/test_mlflow_page.py."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pat.launch.environment import free_port
from pat.run.directory import ExitCode
from tests.unit.registry.test_mlflow import run
from tests.unit.registry.test_registry import contents, small

pytestmark = [pytest.mark.slow, pytest.mark.real_processes]
PATIENCE_S = 400


@dataclass
class Server:
    """Of a SQLite file in a folder, on a port of this machine."""

    folder: Path
    port: int
    environment: Mapping[str, str] = field(default_factory=dict[str, str])  # beside this process's
    process: Any = field(init=False)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--workers=1", f"--port={self.port}"]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        environment = {**os.environ, **quiet, **self.environment}
        log = self.folder / "server.log"
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [*command, f"--backend-store-uri=sqlite:///{self.folder}/server.db"], cwd=self.folder,
                env=environment, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + PATIENCE_S
        while not self.answers():
            assert self.process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
            time.sleep(0.2)

    def answers(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5) as said:
            return said.read() == b"OK"
        return False

    def kill(self) -> None:
        """With its workers."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path, free_port())
    try:
        made.start()
        yield made
    finally:
        made.kill()


def test_the_commands_on_a_server(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: what only a database takes (long tags, deleted aliases), a promotion that is lost when two are made
    at once, and a move that a server's death leaves half done."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    folders = [small(tmp_path / str(number), number) for number in (1, 2)]
    there = ("--dir", tmp_path / "registry", "--uri", server.uri)
    for folder in folders:
        assert run("add", "demo", folder, *there) == 0
    assert run("promote", "demo", 1, "--as", "champion", "--reason", "first", *there) == 0
    assert run("promote", "demo", 2, "--as", "champion", "--expect", 1, *there) == 0
    assert run("rollback", "demo", "--as", "champion", *there) == 0
    assert run("get", "demo", "champion", "--out", tmp_path / "out", *there) == 0
    assert contents(tmp_path / "out") == contents(folders[0])

    command = [sys.executable, "-m", "pat.cli", "registry", "promote", "demo"]
    both = [subprocess.Popen([*command, str(n), "--as", "champion", *map(str, there)]) for n in (1, 2)]
    assert [each.wait() for each in both] == [0, 0]

    server.kill()
    assert run("promote", "demo", 1, "--as", "champion", *there) == ExitCode.ERROR
    assert server.uri in capsys.readouterr().err
    server.start()
    assert run("show", "demo", "--json", tmp_path / "show.json", *there) == 0
    history = json.loads((tmp_path / "show.json").read_text())["history"]
    assert [each["after"] for each in history[:3]] == [1, 2, 1] and len(history) in (4, 5)
    assert [each["before"] for each in history] == [None, *(each["after"] for each in history[:-1])]
