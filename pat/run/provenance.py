"""Which code a run was made with, and when and where it was started."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import subprocess
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pat
from pat.run.directory import HOST, RunDir


def versions() -> dict[str, str]:
    """The code that runs: package, git commit if there is one, and the packages that results depend on."""
    installed = {"pat": pat.__version__}
    for name in ("torch", "deepspeed", "transformers", "datasets", "numpy"):
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = git_commit()
    return installed | ({"git": commit} if commit else {}) | {"code": code_sha256()}


@cache
def code_sha256() -> str:
    """sha256 over the names and contents of this package's sources: a commit does not show later edits."""
    root, digest = Path(pat.__file__).resolve().parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


@cache
def git_commit() -> str | None:
    """The commit of the checkout that this package runs from, `-dirty` if it was edited; None when installed."""
    root = Path(pat.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root), "-c", f"safe.directory={root}"]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        edited = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("-dirty" if edited.stdout.strip() else "")


def latest_step(run_dir: Path) -> int:
    """Step of the newest checkpoint; 0 without any."""
    try:
        return int((RunDir(run_dir).checkpoints / "latest").read_text(encoding="utf-8").strip().removeprefix("step-"))
    except (OSError, ValueError):
        return 0


def record(run_dir: Path, ranks: int, warnings: Sequence[str] = ()) -> None:
    """Record that the run starts now, and what it warned of; called by the holder of the run directory."""
    line: dict[str, Any] = {"time": round(time.time(), 3), "host": HOST, "ranks": ranks, "step": latest_step(run_dir)}
    line |= {"warnings": list(warnings)} if warnings else {}
    if "SLURM_JOB_ID" in os.environ:
        line |= {"job_id": os.environ["SLURM_JOB_ID"], "job_restarts": int(os.environ.get("SLURM_RESTART_COUNT") or 0)}
    with open(RunDir(run_dir).starts, "a") as file:
        file.write(json.dumps(line) + "\n")


def read(run_dir: Path) -> list[dict[str, Any]]:
    """All starts, oldest first; a line that a crash has torn is left out."""
    starts = []
    with contextlib.suppress(OSError):
        for line in RunDir(run_dir).starts.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                starts.append(json.loads(line))
    return starts
