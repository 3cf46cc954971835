"""The last runs of a monitor, in a JSON file beside its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pat.common.files import read_json, write_json
from pat.monitor.result import Monitored

FORMAT = 1


def place(page: Path) -> Path:
    """Where the history of a page is."""
    return page.with_suffix(".history.json")


def read(path: Path) -> list[dict[str, Any]]:
    """The runs before this one, oldest first. ValueError for a file that holds something else."""
    if not path.exists():
        return []
    content = read_json(path)
    runs = content.get("runs") if isinstance(content, Mapping) and content.get("format") == FORMAT else None
    if not isinstance(runs, list) or not all(_is_run(run) for run in runs):
        raise ValueError(f"{path} is not a history of pat monitor: move it away, and a new one is begun")
    return runs


def added(runs: Sequence[Mapping[str, Any]], found: Monitored, keep: int) -> list[dict[str, Any]]:
    """The history with this run, cut to the last `keep`."""
    replayed = found.replayed
    said = {
        "time_s": found.time_s,
        "against": found.against,
        "rows": found.rows,
        "alerts": [f"{check.group}: {check.name}" for check in found.alerts],
        "distances": {f"{check.group}: {check.name}": check.found.statistic for check in found.checks},
        "agreement": replayed.agreement if replayed else None,
        "regressive": replayed.regressive if replayed else None,
    }
    return [*map(dict, runs), said][-keep:]


def write(path: Path, runs: Sequence[Mapping[str, Any]]) -> None:
    """Atomically: a reader, or a crash, sees either the old runs or the new ones."""
    write_json(path, {"format": FORMAT, "runs": list(runs)})


def _is_run(run: Any) -> bool:
    kinds = {"time_s": (int, float), "against": str, "rows": int, "alerts": list, "distances": dict}
    return isinstance(run, Mapping) and all(isinstance(run.get(name), kind) for name, kind in kinds.items())
