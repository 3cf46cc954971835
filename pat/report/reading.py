"""Reads the sources of a report, each path by its content. Keys are hidden."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pat.common import secrets
from pat.common.files import read_json
from pat.evaluation.written import is_evaluation
from pat.gate.profile import is_profile
from pat.report.sources import EXPORT_FILE, Run, Sources, Variant, Written
from pat.report.values import mapping, number, text
from pat.run import provenance
from pat.run.directory import RunDir

SWEEP_FILE = "sweep.json"


def read(paths: Sequence[Path], version: Callable[[str], tuple[Path, Mapping[str, Any]]] | None = None) -> Sources:
    """Each path, by its content. ValueError for one that does not exist or holds nothing known.

    version: (files, what is registered) of NAME/VERSION, called where there is no such path; raises ValueError.
    """
    found = Sources()
    for path in paths:
        if path.is_dir():
            _folder(path, found)
        elif path.is_file():
            _file(path, found)
        elif version is not None and "/" in str(path) and path.suffix != ".json":
            _version(*version(str(path)), found)
        else:
            raise ValueError(f"there is no {path}: give a run, a sweep, an export, or a JSON file of compare or gate")
    return found


def _version(folder: Path, registered: Mapping[str, Any], found: Sources) -> None:
    """A variant, and the measurements recorded when it was added."""
    export = _required(folder / EXPORT_FILE) if (folder / EXPORT_FILE).is_file() else {}
    said = _mapping(registered)
    found.variants.append(Variant(folder, export, _mapping(read_json(folder / "config.json")), said))
    for kind, content in mapping(said, "evidence").items():
        if isinstance(content, Mapping):
            place = {"gate": found.gates, "profile": found.profiles, "metrics": found.evaluations}.get(kind)
            if place is not None:
                place.append(Written(Path(f"{text(said, 'label')}: {kind}"), content))


def read_run(path: Path) -> Run:
    """A run directory, also one that is still running; ValueError where its config cannot be read."""
    from pat.launch.status import status

    directory = RunDir(path)
    try:
        config = yaml.safe_load(directory.config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read {directory.config}: {str(error).splitlines()[0]}") from None
    return Run(
        path=path,
        config=_mapping(config),
        summary=_mapping(read_json(directory.summary)),
        exit=_mapping(read_json(directory.exit)),
        lines=read_lines(directory.metrics),
        starts=[start for start in secrets.hidden(provenance.read(path)) if isinstance(start, Mapping)],
        versions=_mapping(read_json(directory.version)),
        state=status(path).state,
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl in the order of their steps; torn ones are left out."""
    try:
        raw = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    lines = []
    for line in raw:
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict) and number(content, "step") is not None:
            lines.append(content)
    return sorted(lines, key=lambda content: content["step"])


def _folder(path: Path, found: Sources) -> None:
    if (path / SWEEP_FILE).is_file():
        found.sweeps.append(Written(path, _required(path / SWEEP_FILE)))
    elif RunDir(path).config.is_file():
        found.runs.append(read_run(path))
    elif (path / EXPORT_FILE).is_file() or (path / "config.json").is_file():
        export = _required(path / EXPORT_FILE) if (path / EXPORT_FILE).is_file() else {}
        found.variants.append(Variant(path, export, _mapping(read_json(path / "config.json"))))
    else:
        raise ValueError(
            f"{path} holds no run (config.yaml), no sweep (sweep.json) and no model (config.json): give one that does"
        )


def _file(path: Path, found: Sources) -> None:
    content = _required(path)
    if "winner" in content and isinstance(content.get("members"), list):
        raise ValueError(f"{path} is of a race, of which a report shows the run that won: {_winner(content)}")
    kinds = {
        "gates": "passed" in content and isinstance(content.get("checks"), list),
        "comparisons": isinstance(content.get("outcomes"), list) and "a" in content,
        "logs": isinstance(content.get("watched"), list) and "a" in content,
        "sweeps": isinstance(content.get("members"), list),
        "evaluations": is_evaluation(content),
        "profiles": is_profile(content),
    }
    kind = next((name for name, fits in kinds.items() if fits), None)
    if kind is None:
        raise ValueError(
            f"{path} is no JSON of pat compare, pat gate, pat profile, pat evaluate or pat sweep: give one of theirs"
            f"{'; the page of a log is what `pat monitor --html` writes' if 'alerts' in content else ''}"
        )
    getattr(found, kind).append(Written(path, content))


def _winner(race: Mapping[str, Any]) -> str:
    """What to give instead of a race."""
    won = [one["dir"] for one in race["members"] if one.get("name") == race["winner"]]
    return f"give {won[0]}" if won else "none has yet"


def _required(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} cannot be read as JSON: is it whole?")
    return _mapping(content)


def _mapping(content: Any) -> dict[str, Any]:
    return secrets.hidden(content) if isinstance(content, Mapping) else {}
