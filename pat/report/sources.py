"""The sources of a report: runs, exports, sweeps, and what other commands wrote."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pat.common.files import read_json
from pat.report.values import flat, get, mapping, number, sequence, text
from pat.run.directory import ExitCode, RunDir

EXPORT_FILE = "export.json"


@dataclass(frozen=True)
class Run:
    """What a run directory holds, as read; a file that is not there is empty."""

    path: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]  # empty until it is done
    exit: Mapping[str, Any]  # empty while it runs, or when it died
    lines: Sequence[Mapping[str, Any]]  # of metrics.jsonl
    starts: Sequence[Mapping[str, Any]]
    versions: Mapping[str, Any]
    state: str = ""  # as `pat status` says

    @property
    def name(self) -> str:
        """The name that the user gave."""
        return text(self.config, "run.name") or self.path.name

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs, or when it died."""
        found = number(self.exit, "code")
        return None if found is None else int(found)

    @property
    def is_over(self) -> bool:
        """Whether it has ended and does not go on: one that was preempted is started again, often by Slurm."""
        return bool(self.exit) and self.code != ExitCode.PREEMPTED

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics of the last evaluation."""
        return mapping(self.summary, "metrics") or evaluated(self.lines, "eval/")

    @property
    def before(self) -> dict[str, Any]:
        """The metrics when pruning began."""
        return mapping(self.summary, "dense_metrics") or evaluated(self.lines, "dense/")

    @property
    def began(self) -> str:
        """When pruning began, in words."""
        return _began(number(self.summary, "dense_step"))

    @property
    def warnings(self) -> list[str]:
        """What the last start warned of."""
        return [str(sentence) for sentence in sequence(self.starts[-1], "warnings")] if self.starts else []

    def became(self, variant: Variant) -> bool:
        """Whether the export is of this run's last checkpoint."""
        weights, directory = text(self.summary, "weights_sha256"), text(variant.export, "lineage.directory")
        return bool(weights) and (text(variant.export, "weights_sha256"), directory) == (
            weights,
            self.path.resolve().name,
        )

    def is_of(self, gate: Written) -> bool:
        """Whether a gate's result is of this run, or of an export of it."""
        return self.is_at(gate.folder) and self._is_now(number(gate.content, "variant.step"))

    def is_at(self, place: Path) -> bool:
        """Whether a folder that another command names is this run, or an export of it; where it is not on this
        machine, whether it has the same name."""
        own = self.path.resolve()
        if not place.exists():
            return place.name == own.name
        return place.resolve() == own or text(read_json(place / EXPORT_FILE), "lineage.directory") == own.name

    def is_side(self, side: str, comparison: Written) -> bool:
        """Whether it is the a, or the b, of a comparison."""
        return self.is_at(comparison.side(side)) and self._is_now(number(comparison.content, f"step.{side}"))

    def _is_now(self, step: float | None) -> bool:
        """Whether it still ends or is best at a step: it may have been trained further. True where that is not said."""
        now = [number(self.summary, key) for key in ("step", "best_step")]
        return step is None or now[0] is None or step in now

    @property
    def is_pruned(self) -> bool:
        """Whether it has pruners."""
        return bool(get(self.config, "pruners"))


@dataclass(frozen=True)
class Variant:
    """An exported folder, or another Hugging Face folder, of which less is known."""

    path: Path
    export: Mapping[str, Any]
    model: Mapping[str, Any]  # config.json
    registered: Mapping[str, Any] = field(default_factory=dict[str, Any])  # its version, where the registry has it

    @property
    def name(self) -> str:
        """The name in the registry, or that of the folder."""
        return text(self.registered, "label") or self.path.resolve().name

    @property
    def config(self) -> Mapping[str, Any]:
        """The config of the run that made it."""
        return mapping(self.export, "config")

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics of the exported checkpoint."""
        return mapping(self.export, "lineage.metrics")

    @property
    def before(self) -> dict[str, Any]:
        """The metrics when pruning began."""
        return mapping(self.export, "lineage.dense_metrics")

    @property
    def began(self) -> str:
        """When pruning began, in words."""
        return _began(number(self.export, "lineage.dense_step"))

    def is_of(self, gate: Written) -> bool:
        """Whether a gate's result names the weights in this folder."""
        return text(gate.content, "variant.weights_sha256") in self._hashes

    def is_at(self, place: Path) -> bool:
        """Whether a folder that another command names is this one, or the run that it was exported from; where it is
        not on this machine, whether it has such a name."""
        own, run = self.path.resolve(), text(self.export, "lineage.directory")
        if not place.exists():
            return place.name in (own.name, run)
        return place.resolve() == own or (place.resolve().name == run and RunDir(place).config.is_file())

    def is_side(self, side: str, comparison: Written) -> bool:
        """Whether it is the a, or the b, of a comparison: by its weights, where the comparison names them. A version of
        the registry has no folder of its own, so nothing else tells."""
        said = text(comparison.content, f"weights_sha256.{side}")
        if self.registered or (said and self._hashes):
            return said in self._hashes
        return self.is_at(comparison.side(side))

    def was_at(self, place: Path, sha256: str) -> bool:
        """Whether another command measured other weights in this folder than it holds now."""
        return bool(sha256) and place.resolve() == self.path.resolve() and sha256 not in (self._hashes or [sha256])

    @functools.cached_property
    def _hashes(self) -> Sequence[Any]:
        if self.registered:
            return sequence(self.registered, "weights")
        from safetensors import SafetensorError

        from pat.evaluation.folders import weights_sha256  # which takes torch along

        try:
            return [weights_sha256(self.path)]
        except (OSError, ValueError, SafetensorError):  # not whole
            return []

    @property
    def is_pruned(self) -> bool:
        """Whether something was prunable."""
        return bool(number(self.export, "prunable_parameters"))


@dataclass(frozen=True)
class Written:
    """A JSON file that another command wrote."""

    path: Path
    content: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """The folder of the model that a gate judged."""
        return Path(text(self.content, "directory")) / text(self.content, "variant.folder")

    def side(self, side: str) -> Path:
        """Of a comparison, the folder of its a, or its b."""
        return Path(text(self.content, "directory")) / text(self.content, side)

    @property
    def weights(self) -> list[tuple[Path, str]]:
        """The folder of each model that it is of, and the hash of its weights, empty where that is not said."""
        if get(self.content, "a") is not None:
            return [(self.side(side), text(self.content, f"weights_sha256.{side}")) for side in "ab"]
        here = Path(text(self.content, "directory"))
        return [(here / text(one, "folder"), text(one, "weights_sha256")) for one in sequence(self.content, "models")]

    @property
    def turned(self) -> Written:
        """Of a comparison, how its a stands beside its b."""
        outcomes = [
            {**one, "overall": _turned(one.get("overall")), "slices": [*map(_turned, sequence(one, "slices"))]}
            for one in sequence(self.content, "outcomes")
            if isinstance(one, Mapping)
        ]
        a, b = (text(self.content, side) for side in "ab")
        return Written(self.path, {**self.content, "a": b, "b": a, "outcomes": outcomes})


@dataclass(frozen=True)
class Sources:
    """Everything given, by kind, each in the order given."""

    runs: list[Run] = field(default_factory=list)
    variants: list[Variant] = field(default_factory=list)
    sweeps: list[Written] = field(default_factory=list)
    comparisons: list[Written] = field(default_factory=list)
    logs: list[Written] = field(default_factory=list)  # pat compare --from-logs
    gates: list[Written] = field(default_factory=list)
    profiles: list[Written] = field(default_factory=list)
    evaluations: list[Written] = field(default_factory=list)

    @property
    def models(self) -> list[Run | Variant]:
        """Runs and folders, the dense ones first."""
        return sorted([*self.runs, *self.variants], key=lambda one: one.is_pruned)

    @property
    def measured(self) -> list[Run | Variant]:
        """The models, without a run whose last checkpoint is given as an export, too."""
        return [one for one in self.models if not (isinstance(one, Run) and any(map(one.became, self.variants)))]

    def label(self, model: Run | Variant) -> str:
        """Its name, with its kind where another one has the same name."""
        if sum(one.name == model.name for one in self.models) == 1:
            return model.name
        return f"{model.name} ({'run' if isinstance(model, Run) else 'export'})"

    @functools.cached_property
    def judging(self) -> list[Written]:
        """The gates of the subject; where there is none, or a gate does not name its model, all."""
        return [each for each in self.gates if self._is_own(each)]

    @functools.cached_property
    def telling(self) -> list[Written]:
        """The comparisons of a second model with the subject as their b, turned where it is their a; where there is no
        subject, all."""
        sides = [(each, self._side(each)) for each in self.comparisons if not self.stale(each)]
        return [each.turned if side == "a" else each for each, side in sides if side]

    def stale(self, written: Written) -> str:
        """The folders that are given and hold other weights now than those that a command measured there, in a
        sentence; empty where there is none."""
        found = [place for place, sha256 in written.weights if any(one.was_at(place, sha256) for one in self.variants)]
        folders = " and ".join(dict.fromkeys(map(str, found)))
        return f"{written.path} is of other weights than {folders} has now: measure again." if found else ""

    def _is_own(self, gate: Written) -> bool:
        if not (self.models and text(gate.content, "variant.weights_sha256")):
            return True
        return any(one.is_of(gate) for one in self._same)

    def _side(self, comparison: Written) -> str | None:
        """The side of a comparison that the subject is; None where it is neither."""
        if self.subject is None:
            return "b"
        return next((side for side in "ba" if any(one.is_side(side, comparison) for one in self._same)), None)

    @functools.cached_property
    def subject(self) -> Run | Variant | None:
        """What the report is about: the first folder or run that is pruned; where none says that it is, the first that
        a gate or a comparison is of, or else the first."""
        given = [*self.variants, *self.runs]
        pruned = (one for one in given if one.is_pruned)
        return next(itertools.chain(pruned, filter(self._is_judged, given), given), None)

    def _is_judged(self, model: Run | Variant) -> bool:
        return any(map(model.is_of, self.gates)) or any(model.is_side("b", each) for each in self.comparisons)

    @functools.cached_property
    def _same(self) -> list[Run | Variant]:
        """The subject, and the run of which it is an export, or its own exports."""

        def pair(a: Run | Variant | None, b: Run | Variant | None) -> bool:
            return isinstance(a, Run) and isinstance(b, Variant) and a.became(b)

        subject = self.subject
        return [one for one in self.models if one is subject or pair(one, subject) or pair(subject, one)]


def evaluated(lines: Sequence[Mapping[str, Any]], prefix: str) -> dict[str, Any]:
    """The metrics of the last line that has some under a prefix."""
    for line in reversed(lines):
        found = {name.removeprefix(prefix): value for name, value in line.items() if name.startswith(prefix)}
        if found:
            return {name: value for name, value in found.items() if name != "seconds"}
    return {}


def _turned(one: Any) -> dict[str, Any]:
    """A difference of b from a as that of a from b."""
    a, b, by, low, high = (number(one, f"found.{key}") for key in ("a", "b", "difference", "low", "high"))
    by, low, high = (None if value is None else -value for value in (by, high, low))
    verdict = {"worse": "better", "better": "worse"}.get(text(one, "verdict"), "")
    said = {"name": get(one, "name"), "verdict": verdict}
    return {**said, "found": {"a": b, "b": a, "difference": by, "low": low, "high": high}}


def _began(step: float | None) -> str:
    return f"when pruning began, after {step:,.0f} steps" if step else "when pruning began"


def without_training(model: Run | Variant) -> bool:
    """Whether it was pruned at once, as `pat prune` does."""
    return number(model.config, "train.num_steps") == 0


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config by dotted keys, without those that only say where it ran."""
    return {key: value for key, value in flat(config) if not key.startswith(("run.", "logger."))}
