"""The machines of a run without Slurm, and how many ranks they make."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pat.schema import Config


def read_hostfile(path: str | Path) -> dict[str, int]:
    """Host -> ranks on it, of lines `HOST slots=N`; ValueError for anything else."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ValueError(f"engine.hostfile={path} cannot be read: {reason}") from None
    hosts: dict[str, int] = {}
    for number, line in enumerate((line.partition("#")[0].strip() for line in lines), start=1):
        if not line:
            continue
        match = re.fullmatch(r"(\w[\w.-]*)\s+slots=([1-9]\d*)", line)
        if not match or match[1] in hosts:
            problem = "names a host a second time" if match else "is not `HOST slots=N`"
            raise ValueError(f"engine.hostfile={path}: line {number}, {line!r}, {problem}")
        hosts[match[1]] = int(match[2])
    if not hosts:
        raise ValueError(f"engine.hostfile={path} names no host: a line is `HOST slots=N`, N ranks on that host")
    return hosts


def take_world_size(config: Config, overrides: Sequence[str]) -> Config:
    """With as many ranks as the hostfile has slots; ValueError where the command line says something else."""
    if config.engine.hostfile is None:
        return config
    slots = sum(read_hostfile(config.engine.hostfile).values())
    for override in overrides:
        if override.startswith("engine.world_size=") and override != f"engine.world_size={slots}":
            raise ValueError(
                f"{override}, but engine.hostfile={config.engine.hostfile} has {slots} slots: leave one of them out"
            )
    return config.changed(engine__world_size=slots)
