"""A failing test of real processes is run once more, and never silently; what failed is named at the end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONTENT = """
import pathlib, pytest

def count(name):
    file = pathlib.Path(__file__).with_name(name)
    file.write_text(file.read_text() + "x" if file.exists() else "x")
    return len(file.read_text())

@pytest.fixture
def fresh():
    return [count("fixture")]

@pytest.mark.real_processes
def test_slow_machine(fresh):
    assert count("slow machine") == 2 and fresh == [2], "not yet there"

@pytest.mark.real_processes
def test_broken(fresh):
    assert not count("broken"), "broken for good"

@pytest.mark.real_processes
def test_well():
    assert count("well") == 1

def test_ordinary():
    assert not count("ordinary"), "an ordinary failure"
"""


@pytest.mark.parametrize(
    "more", [(), pytest.param(("--numprocesses=1",), marks=pytest.mark.slow)], ids=["one process", "xdist"]
)
def test_once_more_and_named_at_the_end(repository: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    file = tmp_path / "test_made.py"
    file.write_text(CONTENT)
    command = [sys.executable, "-m", "pytest", "-c", repository / "pyproject.toml", "--rootdir", tmp_path, file]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    done = subprocess.run(
        [*command, "-p", "tests.outcomes", "-p", "no:cacheprovider", "-ra", *more],
        cwd=repository,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    counts = {name: len((tmp_path / name).read_text()) for name in ("slow machine", "broken", "well", "ordinary")}
    assert counts == {"slow machine": 2, "broken": 2, "well": 1, "ordinary": 1}
    last = done.stdout.rstrip().splitlines()[-1]
    assert "2 failed, 2 passed" in last and "2 run once more" in last
    before = done.stdout[: done.stdout.index("= FAILURES =")]
    assert before.count("failed: test_made.py::test_broken") == before.count("failed: test_made.py::test_ordinary") == 1
    assert before.count("failed, is run once more: test_made.py::") == 2 and "an ordinary failure" in before
    end = done.stdout[done.stdout.rindex("short test summary info") :]
    once, broken, again, ordinary = (
        end.index(f" {words} ")
        for words in (
            "failed, was run once more and passed: test_made.py::test_slow_machine",
            "failed, was run once more and did not pass then, either: test_made.py::test_broken",
            "failed: test_made.py::test_broken",
            "failed: test_made.py::test_ordinary",
        )
    )
    assert once < broken and max(once, broken) < min(again, ordinary)
    assert "AssertionError: not yet there" in end[once:broken] and "an ordinary failure" in end[ordinary:]


@pytest.mark.parametrize(
    ("place", "ci", "user", "code"),
    [
        ("cluster", "true", 1000, 1),
        ("browser", "true", 0, 1),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("cluster", "false", 0, 0), ("browser", "true", 1000, 0), ("browser", "false", 0, 0))
        ),
    ],
)
def test_a_skip_of_what_needs_root_is_counted_and_fails_on_ci(
    place: str, ci: str, user: int, code: int, repository: Path, tmp_path: Path
) -> None:
    """Would catch: a machine of CI that lost its Chromium or Slurm and still passes; a user's that fails for want of a
    Chromium which only root can install."""
    (tmp_path / "tests" / place).mkdir(parents=True)
    content = "import pytest\ndef test_slurm():\n    pytest.skip('no root')\ndef test_other():\n    pass\n"
    (tmp_path / "tests" / place / "test_made.py").write_text(content)
    (tmp_path / "tests" / "test_else.py").write_text("import pytest\ndef test_it():\n    pytest.skip('no gpu')\n")
    (tmp_path / "tests" / "conftest.py").write_text(f"import os\nos.geteuid = lambda: {user}\n")
    (apt := tmp_path / "apt-get").touch(0o755)
    command = [sys.executable, "-m", "pytest", "-c", repository / "pyproject.toml", "--rootdir", tmp_path, "tests"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment |= {"CI": ci, "PYTHONPATH": str(repository), "PATH": f"{apt.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [*command, "-p", "tests.outcomes", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stdout.count("skipped 1 that need root or an installation: Skipped: no root") == 1
