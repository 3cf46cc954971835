"""A profile's figures of models: latencies, throughput, memory. docs/gate.md has the shape of the file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pat.common.text import did_you_mean
from pat.envelope.figures import PROFILE, others
from pat.envelope.judge import Evidence, Quantity
from pat.evaluation.written import is_evaluation

INTERVALS, WEIGHTS = "intervals", "weights_sha256"
UNBOUNDED = (-math.inf, math.inf)


@dataclass(frozen=True)
class Profile:
    """A file with models, and perhaps ratios that were measured side by side."""

    path: Path
    models: dict[Path, Mapping[str, Any]]
    ratios: dict[tuple[Path, Path], Mapping[str, Any]]
    confidence: float | None = None  # of its intervals; None: it does not say

    @property
    def says_weights(self) -> bool:
        """Whether it names the weights of all its models; `pat profile` once did not, and other tools may not."""
        return all(row.get(WEIGHTS) for row in self.models.values())

    def has(self, folder: Path) -> bool:
        """Whether it is of the model in this folder, too."""
        return folder.resolve() in self.models

    def check_weights(self, folder: Path, sha256: str) -> None:
        """ValueError where other weights than these were measured in the folder, of which it must have figures."""
        said = self._model(folder).get(WEIGHTS)
        if said and said != sha256:
            raise ValueError(
                f"{self.path} is of other weights ({str(said)[:12]}) than {folder} holds now ({sha256[:12]}): "
                "profile it again"
            )

    def evidence(self, name: str, variant: Path, baseline: Path | None, confidence: float) -> Evidence:
        """The profile's value of a figure. Raises ValueError where it has none, or an interval of another level."""
        measured = self._quantity(self._model(variant), name, str(variant))
        self._check_confidence(measured, confidence)
        if baseline is None:
            return Evidence(measured)
        before = self._quantity(self._model(baseline), name, str(baseline)).value
        said = self.ratios.get((variant.resolve(), baseline.resolve()), {})
        if name in said:
            ratio = self._quantity(said, name, f"{variant} against {baseline}")
            self._check_confidence(ratio, confidence)
        else:
            ratio = Quantity(measured.value / before if before else math.nan)
        return Evidence(measured, before, Quantity(measured.value - before), ratio)

    def _check_confidence(self, found: Quantity, confidence: float) -> None:
        if found.low is not None and self.confidence not in (None, confidence):
            raise ValueError(
                f"the intervals of {self.path} are of {self.confidence:.4g}, and the gate's of {confidence:.4g}: give "
                f"--confidence {self.confidence:g}, or profile with --confidence {confidence:g}"
            )

    def _model(self, folder: Path) -> Mapping[str, Any]:
        if not self.has(folder):
            known = list(map(str, self.models))
            raise ValueError(
                f"{self.path} has no figures of {folder}; it has {', '.join(known)}"
                f"{did_you_mean(str(folder.resolve()), known)}: profile it, too"
            )
        return self.models[folder.resolve()]

    def _quantity(self, said: Mapping[str, Any], name: str, whose: str) -> Quantity:
        if name not in said:
            known = [key for key, value in said.items() if isinstance(value, int | float)]
            raise ValueError(
                f"{self.path} has no {name} of {whose}; it has {', '.join(known)}{did_you_mean(name, known)}"
            )
        if name == "cost_per_million_tokens" and said[name] is None:
            raise ValueError(f"{self.path} has no {name} of {whose}: profile with --price-per-hour")
        value, interval = said[name], self._intervals(said, whose).get(name)
        if not _number(value):
            raise ValueError(f"{self.path}: {name} of {whose} is {value!r}, but must be a finite number")
        if interval is None:
            return Quantity(float(value))
        if not (isinstance(interval, list) and len(interval) == 2 and all(x is None or _number(x) for x in interval)):
            raise ValueError(
                f"{self.path}: the interval of {name} of {whose} is {interval!r}, but must be [low, high], null where "
                "there is no bound"
            )
        low, high = (end if given is None else float(given) for given, end in zip(interval, UNBOUNDED, strict=True))
        return Quantity(float(value), low, high)

    def _intervals(self, said: Mapping[str, Any], whose: str) -> Mapping[str, Any]:
        found = said.get(INTERVALS) or {}
        if not isinstance(found, Mapping):
            raise ValueError(f"{self.path}: {INTERVALS} of {whose} is {found!r}, but must be {{figure: [low, high]}}")
        return found


def read(path: Path) -> Profile:
    """The profile in a JSON file. A folder in it is found from where the command runs. Raises ValueError."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}: give what `pat profile --json FILE` wrote")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if is_evaluation(content):
        raise ValueError(f"{path} is what `pat evaluate --json` wrote: give what `pat profile --json` wrote")
    models = content.get("models") if isinstance(content, Mapping) else None
    ratios = content.get("ratios", []) if isinstance(content, Mapping) else []
    if not (_rows(models, "folder") and models and _rows(ratios, "folder", "against")):
        raise ValueError(
            f'{path} is not a profile: it must hold {{"models": [{{"folder": ..., "latency_p95": seconds, ...}}]}}, '
            'and perhaps "ratios": [{"folder": ..., "against": ..., "latency_p95": ratio}]'
        )
    folders = [Path(row["folder"]).resolve() for row in models]
    twice = next((row["folder"] for i, row in enumerate(models) if folders[i] in folders[:i]), None)
    if twice is not None:
        raise ValueError(f"{path} has {twice} more than once: profile each model once, with one --backend")
    found = {(folder, folders[0]): _beside_the_first(row) for folder, row in zip(folders, models, strict=True)}
    found |= {(Path(row["folder"]).resolve(), Path(row["against"]).resolve()): row for row in ratios}
    confidence = content.get("confidence")
    return Profile(path, dict(zip(folders, models, strict=True)), found, confidence if _number(confidence) else None)


def is_profile(content: Any) -> bool:
    """Whether a model of it has a figure that the gate takes from a profile, or a backend."""
    models = content.get("models") if isinstance(content, Mapping) else None
    names = ["backend", *(name for name, figure in others().items() if PROFILE in figure.sources)]
    return isinstance(models, list) and any(name in one for one in models if isinstance(one, Mapping) for name in names)


def _beside_the_first(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A model's `ratio` to the first one, {figure: {value, low, high}}, as a row of `ratios`."""
    said = row.get("ratio")
    known = {name: one for name, one in said.items() if isinstance(one, Mapping)} if isinstance(said, Mapping) else {}
    bounded = {name: one for name, one in known.items() if {"low", "high"} <= one.keys()}
    values = {name: one.get("value") for name, one in known.items()}
    return {**values, INTERVALS: {name: [one["low"], one["high"]] for name, one in bounded.items()}}


def _rows(value: Any, *keys: str) -> bool:
    return isinstance(value, list) and all(
        isinstance(row, Mapping) and all(isinstance(row.get(key), str) for key in keys) for row in value
    )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
