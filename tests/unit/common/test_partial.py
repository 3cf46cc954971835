"""Folders that are not whole yet, and what a kill leaves of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pat.common import partial

KILLED = """
import os, sys
from pathlib import Path
from pat.common import partial
with partial.written(Path(sys.argv[1]), inside=len(sys.argv) > 2) as part:
    (part / "half").touch()
    os.kill(os.getpid(), 9)
"""


def parts(target: Path) -> list[Path]:
    return [path for folder in (target, target.parent) for path in folder.glob(".*.partial")]


@pytest.mark.parametrize("where", [["inside"], []], ids=["inside", "beside"])
def test_what_a_kill_leaves_is_removed_and_what_is_held_stays(where: list[str], tmp_path: Path) -> None:
    target, other = tmp_path / "out[1]", tmp_path / "out1"
    for folder in (target, other):
        folder.mkdir()
        subprocess.run([sys.executable, "-c", KILLED, folder, *where], check=False)
    assert len({*parts(target), *parts(other)}) == 2
    with partial.written(target, inside=bool(where)) as alive:
        partial.clear(target)
        assert [path for path in parts(target) if not path.name.startswith(".out1")] == [alive]
        alive.rename(tmp_path / "whole")
    partial.clear(other)
    assert not parts(target) and not parts(other) and (tmp_path / "whole").is_dir()


@pytest.mark.parametrize("inside", [True, False])
def test_processes_of_one_number_do_not_meet(inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in two containers, where each is the first."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    (tmp_path / "out").mkdir()
    with partial.written(tmp_path / "out", inside) as one:
        with pytest.raises(OSError, match="full"), partial.written(tmp_path / "out", inside) as two:
            assert two != one
            raise OSError("the disk is full")
        assert parts(tmp_path / "out") == [one]
