"""launch/decide.sh, from nothing to a decision, on a tiny stand-in: what it leaves behind, and that it refuses."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pat.run.directory import ExitCode
from tests.conftest import ROOT

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
PATIENCE_S = 900.0


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Path]:
    """A folder with a `pat` that is quick to start, for PATH."""
    folder = tmp_path / "server"
    folder.mkdir()
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.command_server", str(folder)]
    server = subprocess.Popen(command, cwd=ROOT, env=environment)
    end = time.monotonic() + PATIENCE_S
    while not (folder / "ready").exists():
        assert server.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    yield folder / "bin"
    server.kill()
    server.wait()


def write_stand_in(folder: Path) -> None:
    """As the script does where it is not there; here without another start of Python."""
    spec = importlib.util.spec_from_file_location("stand_in", ROOT / "launch" / "stand_in.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder.mkdir(parents=True)
    module.write(folder)


def test_variants_become_a_decision(commands: Path, tmp_path: Path) -> None:
    """The two that pass are promoted one after the other, the third is refused, and the first is rolled back to."""
    out = tmp_path / "decide"
    write_stand_in(out / "assets")
    path = os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PAT_SETUP": "active", "DECIDE_STAND_IN": "yes", "WANDB_MODE": "offline"}
    script = ["bash", str(ROOT / "launch" / "decide.sh"), str(out)]
    done = subprocess.run(script, capture_output=True, text=True, env=environment, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    gates = {name: json.loads((out / f"{name}.gate.json").read_text()) for name in ("sparse", "narrow", "broken")}
    assert {name: gate["passed"] for name, gate in gates.items()} == {"sparse": True, "narrow": True, "broken": False}

    command = [str(commands / "pat"), "registry", "show", "reviews", "--dir", str(out / "registry")]
    shown = out / "shown.json"
    subprocess.run([*command, "--json", str(shown)], check=True, capture_output=True, env=environment)
    registry = json.loads(shown.read_text())
    assert {each["number"]: each["aliases"] for each in registry["versions"]} == {1: ["champion"], 2: [], 3: []}
    moves = [(each["kind"], each["before"], each["after"]) for each in registry["history"]]
    assert moves == [("promote", None, 1), ("promote", 1, 2), ("rollback", 2, 1)]
    refused = [*command[:2], "promote", "reviews", "3", "--as", "champion", *command[-2:]]
    assert subprocess.run(refused, capture_output=True, env=environment).returncode == ExitCode.BROKEN_PROMISE
    assert (out / "report.html").stat().st_size > 0 and (out / "compare.json").exists()
