"""launch/demo.sh and launch/decide.sh, from nothing to their end: what they leave behind. The demo on its real assets
with few steps, `decide.sh` on a tiny stand-in."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pat.run.directory import ExitCode
from tests.conftest import ROOT

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
PATIENCE_S = 1500.0
KEY = "hf_ThisIsNoRealTokenAtAll0123456789abcdef0123"


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a `pat` that is quick to start, for PATH."""
    folder = tmp_path_factory.mktemp("server")
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


def run(script: str, out: Path, *commands: Path, keys: Sequence[str] = (), **variables: str) -> str:
    """What a script of launch/ says, in the environment of the tests; folders of `commands` go before it."""
    if any(name.endswith("STAND_IN") for name in variables):
        write_stand_in(out / "assets")
    path = os.pathsep.join([*map(str, commands), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PAT_SETUP": "active", "WANDB_MODE": "offline"} | variables
    command = ["bash", str(ROOT / "launch" / script), str(out), *keys]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_nowhere(secret: str, folder: Path) -> None:
    """Would catch: a config, a log, a record of a start or a report that holds the environment."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 50 and not [path for path in files if secret.encode() in path.read_bytes()]


def test_the_demo_prunes_the_pretrained_encoder_on_the_film_reviews(tmp_path: Path) -> None:
    """With so few steps only what is gone and where it is says something. Would catch: a package that is no more, or an
    encoder and sentences that the recipes do not fit."""
    assets, out = tmp_path / "assets", tmp_path / "demo"
    command = [sys.executable, str(ROOT / "launch" / "assets.py"), "reviews"]
    made = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_S, env=os.environ | {"PAT_ASSETS": str(assets)}
    )
    if "could not be downloaded" in made.stderr:
        return on_the_stand_in(out)
    assert made.returncode == 0, made.stderr
    few = [f"pruners.weights.criterion.{key}" for key in ("num_samples=128", "gradient_samples=32")]
    few += ["pruners.weights.schedule.name=one_shot", "pruners.weights.schedule.start=0.3"]  # four cuts take a minute
    said = run("demo.sh", out, keys=few, DEMO_STEPS="16", PAT_ASSETS=str(assets))
    table = json.loads((out / "table.json").read_text())
    dense, pruned = table["dense"], table["pruned"]
    lost = dense["nonzero"] - pruned["nonzero"]
    assert lost == pytest.approx(0.9 * 6 * 2 * 384 * 1536, rel=0.001)
    assert pruned["sparsity"] == pytest.approx(0.9, abs=1e-6) and not dense["sparsity"]
    assert dense["steps"] == pruned["steps"] == 16 and dense["ranks"] == pruned["ranks"] == 2
    assert f"{out}/export-pruned" in said and (out / "export-pruned" / "config.json").exists()


def on_the_stand_in(out: Path) -> None:
    """The demo where no package registry can be reached; what `decide.sh` runs on, too."""
    run("demo.sh", out, DEMO_STAND_IN="yes", DEMO_STEPS="40")
    table = json.loads((out / "table.json").read_text())
    dense, pruned = table["dense"], table["pruned"]
    lost = dense["nonzero"] - pruned["nonzero"]
    assert lost == pytest.approx(0.9 * 2 * 2 * 64 * 128, rel=0.01)  # two layers, two matrices each
    assert dense["accuracy"] > 0.8, "the words are learned"


def test_variants_become_a_decision(commands: Path, tmp_path: Path) -> None:
    """The two that pass are promoted one after the other, the third is refused, and the first is rolled back to."""
    out = tmp_path / "decide"
    said = run("decide.sh", out, commands, DECIDE_STAND_IN="yes", HF_TOKEN=KEY, WANDB_API_KEY=KEY[3:])
    assert KEY[3:] not in said
    assert_nowhere(KEY[3:], out)
    gates = {name: json.loads((out / f"{name}.gate.json").read_text()) for name in ("sparse", "narrow", "broken")}
    assert {name: gate["passed"] for name, gate in gates.items()} == {"sparse": True, "narrow": True, "broken": False}

    command = [str(commands / "pat"), "registry", "show", "reviews", "--dir", str(out / "registry")]
    shown = out / "shown.json"
    subprocess.run([*command, "--json", str(shown)], check=True, capture_output=True)
    registry = json.loads(shown.read_text())
    assert {each["number"]: each["aliases"] for each in registry["versions"]} == {1: ["champion"], 2: [], 3: []}
    moves = [(each["kind"], each["before"], each["after"]) for each in registry["history"]]
    assert moves == [("promote", None, 1), ("promote", 1, 2), ("rollback", 2, 1)]
    refused = [*command[:2], "promote", "reviews", "3", "--as", "champion", *command[-2:]]
    assert subprocess.run(refused, capture_output=True).returncode == ExitCode.BROKEN_PROMISE
    report = (out / "report.md").read_text()  # of what was rolled back to
    assert (out / "report.html").stat().st_size > 0 and "reviews version 1" in report
    assert "pat registry get reviews 1" in report and "pat compare" in report
