"""The wheel holds all that a run needs: it is built, installed by itself and trains, away from the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

KEYS = ("recipe=parity", "engine.world_size=1", "engine.kernels=eager", "logger=none", "train.num_steps=30")


@pytest.mark.slow
def test_the_wheel_trains(repository: Path, tmp_path: Path) -> None:
    def run(*command: str | Path, **environment: str) -> str:
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(command, cwd=tmp_path, env=kept | environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
        return done.stdout

    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--quiet", "--wheel-dir", tmp_path, repository)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    run(*pip, "install", "--no-deps", "--no-compile", "--quiet", "--target", installed, wheel)
    here = {"PYTHONPATH": str(installed)}
    place = run(sys.executable, "-c", "import pat, pat.config.places as p; print(pat.__file__, p.conf_dir())", **here)
    assert place.split() == [str(installed / "pat" / "__init__.py"), str(installed / "pat" / "conf")]
    pat = (sys.executable, "-m", "pat")
    run(*pat, "train", *KEYS, "run.dir=run", **here)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["sparsity"] == pytest.approx(0.8, abs=1e-4)
    run(*pat, "export", "run", "--out", "exported", **here)
    assert "8,030,261,248" in run(*pat, "plan", "recipe=llama3_8b", **here), "conf/architectures"


def test_extras_have_the_names_that_every_pip_knows(repository: Path) -> None:
    """Catches an extra that older versions of pip skip with a warning: they know only the form that the wheel has."""
    extras = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [name for name in extras if name != canonicalize_name(name)] == []
