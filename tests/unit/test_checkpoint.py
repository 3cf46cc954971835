"""Putting a checkpoint in its place, and clearing up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pat import checkpoint, retention


class Killed(BaseException):
    """What no handler catches."""


def write(folder: Path, text: str) -> None:
    folder.mkdir(parents=True)
    (folder / "weights").write_text(text)
    if folder.suffix != ".partial":
        (folder / "manifest.json").write_text("{}")


@pytest.mark.parametrize("death", range(7))
def test_saving_a_step_again_never_leaves_the_run_without_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, death: int
) -> None:
    root = tmp_path / "checkpoints"
    final, partial = root / "step-00000030", root / "step-00000030.partial"
    write(final, "old")
    write(partial, "new")
    (root / "latest").write_text(final.name)
    calls: list[str] = []

    def fatal(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) - 1 == death:
                raise Killed
            return plain(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for module in ("pat.checkpoint", "pat.retention"):
            patch.setattr(f"{module}.write_atomic", fatal("write_atomic", retention.write_atomic))
        patch.setattr("shutil.rmtree", fatal("rmtree", checkpoint.shutil.rmtree))
        patch.setattr("os.rename", fatal("rename", checkpoint.os.rename))
        patch.setattr("os.replace", fatal("replace", checkpoint.os.replace))
        manifest = {"world_size": 0, "files": {}, "layout": "zero12"}
        try:
            checkpoint._publish(partial, final, manifest, root)
        except Killed:
            pass
        else:
            assert death >= len(calls) >= 5
    whole = retention.steps(root)
    assert whole and (whole[-1] / "weights").read_text() in ("old", "new")
    assert {path.name for path in whole} <= {final.name, f"{final.name}.replaced"}

    write(root / "step-00000031", "later")
    (root / "latest").write_text("step-00000031")
    retention.retain(root, keep_last=1)
    assert [path.name for path in root.iterdir() if path.is_dir()] == ["step-00000031"]


def test_retention_keeps_the_newest_the_latest_and_the_best(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        write(tmp_path / f"step-{step:08d}", json.dumps(step))
    write(tmp_path / "step-00000050.partial", "torn")
    (tmp_path / "latest").write_text("step-00000040")
    (tmp_path / "best").write_text("step-00000010")
    retention.retain(tmp_path, keep_last=2)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == [f"step-{s:08d}" for s in (10, 30, 40)]
