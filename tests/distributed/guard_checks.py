"""Runs that an envelope leads, in the loop of `pat train` and on real engines; killed wherever something is written."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from pat import train
from pat.checkpoint import retention, store
from pat.checkpoint.reader import CheckpointReader
from pat.common.files import read_json
from pat.config import compose, frozen
from pat.run.directory import RunDir
from pat.schema import Config, PrunerConfig
from pat.training import setup
from pat.training.state import Training
from tests.distributed.harness import from_rank_0, main

# Masks are chosen every two steps from 6 to 14 and evaluated as often; the loss that counts is made of the sparsity.
SHORT = (
    "recipe=parity", "logger=none", "logger.progress=none", "engine.kernels=eager", "train.num_steps=20",
    "train.eval_every=2", "train.log_every=5", "train.checkpoint_every=3", "train.keep_last=1", "data.max_length=16",
    "data.max_eval_samples=4", "envelope.loss.ratio=1.5", "train.envelope_patience=1",
)  # fmt: skip
EVALUATED = 12  # rows of `heals`, four of each slice
RAMP = {"start": 6, "end": 14, "hard_from": 14, "select_every": 2}
PRUNERS: dict[str, dict[str, Any]] = {
    "weights": {},
    "gates": {
        "pruners": {
            "narrow": PrunerConfig(
                structures=["ffn", "layers"],
                gate={"name": "taylor", "fade": 1},
                budget={"name": "parameters", "sparsity": 0.4},
                schedule={"name": "linear", **RAMP},
            )  # fmt: skip
        }
    },
}


class Killed(BaseException):
    """This start ends here; nothing that it has in memory is left."""


class Case:
    """One run in one directory, in as many starts as it takes."""

    def __init__(self, folder: Path, pruner: str = "weights", *overrides: str) -> None:
        self.run, self.changed = RunDir(folder), PRUNERS[pruner]
        self.masks: dict[int, str] = {}  # of the evaluation at a step, as last made
        self.kill: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
        self.starts = 0
        if dist.get_rank() == 0:
            ramp = [f"pruners.weights.schedule.{key}={step}" for key, step in RAMP.items()]
            compose.compose([*SHORT, *ramp, f"run.dir={folder}", *overrides], self._freeze)
        dist.barrier()

    def _freeze(self, config: Config) -> int:
        config = config.changed(engine__world_size=dist.get_world_size(), **self.changed)
        frozen.freeze(config, self.run.path)
        return 0

    def start(self) -> bool:
        """Whether the run is finished; no: killed."""
        self.starts += 1
        training = setup.build(self.run.path)
        try:
            with pytest.MonkeyPatch.context() as patch, self.kill():
                patch.setattr(train, "evaluate", partial(self.evaluate, train.evaluate))
                train.fit(training)
            self.hashes = training.pruner.hashes()
        except Killed:
            return False
        finally:
            training.tracker.close()
            training.watchdog.stop()
            training.engine.destroy()
            del training
            gc.collect()
            dist.barrier()
        return True

    def evaluate(self, plain: Any, training: Training, title: str = "eval") -> Any:
        """2 where more than 60 % are gone and 1 elsewhere, in place of the loss."""
        found = plain(training, title)
        self.masks[training.progress.step] = training.pruner.hashes()[0]
        return found._replace(metrics=found.metrics | {"loss": self.loss(training)})

    def loss(self, training: Training) -> float:
        return 2.0 if training.pruner.totals.sparsity > 0.6 else 1.0

    def result(self) -> dict[str, Any]:
        """What no kill may change."""
        summary = read_json(self.run.summary) or {}
        names = {p.name: p.read_text() for p in self.run.checkpoints.iterdir() if p.is_file()}
        kept = sorted(p.name for p in self.run.checkpoints.iterdir() if p.is_dir())
        reader = CheckpointReader(self.run.checkpoints / names["latest"])
        lines = [line for line in self.run.metrics.read_text().splitlines() if '"train/loss"' in line]
        return {
            "hashes": self.hashes,
            "summary": {key: summary.get(key) for key in ("step", "phase", "sparsity", "target_sparsity", "envelope")},
            "names": names,
            "kept": kept,
            "manifest": {key: reader.manifest["trainer"][key] for key in ("envelope", "clock", "best")},
            "lines": len(lines),
        }


# -- kills -------------------------------------------------------------------------------------------------------------

WRITES = ((retention, "write_atomic"), (store, "write_atomic"), (shutil, "rmtree"), (os, "replace"), (Path, "unlink"))


class Writes:
    """Counts what changes the disk, from the start of a run on; the one of a number is a kill instead."""

    def __init__(self, kill_at: int | None = None) -> None:
        self.kill_at, self.number, self.depth = kill_at, 0, 0
        self.going_back: list[int] = []  # the numbers of those in `go_back`
        self.of_good: list[int] = []  # in the save of a good checkpoint

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for holder, name in WRITES:
                patch.setattr(holder, name, self._counted(getattr(holder, name)))
            patch.setattr(train, "go_back", self._noted(train.go_back, self.going_back))
            patch.setattr(train, "save", self._noted(train.save, self.of_good))
            yield

    def _counted(self, plain: Any) -> Any:
        def write(*args: Any, **kwargs: Any) -> Any:
            if self.depth == 0:
                self.number += 1
                if self.number == self.kill_at:
                    raise Killed
            self.depth += 1
            try:
                return plain(*args, **kwargs)
            finally:
                self.depth -= 1

        return write

    def _noted(self, plain: Any, numbers: list[int]) -> Any:
        def call(training: Training, *args: Any) -> None:
            before = self.number
            try:
                plain(training, *args)
            finally:
                if plain.__name__ != "save" or training.progress.envelope.good_step == training.progress.step:
                    numbers.extend(range(before + 1, self.number + 2))  # one more: after the last

        return call


def killed(root: Path, every: int) -> dict[str, Any]:
    """A run, and it again killed at each (or each so manyth) write of going back and of the last good checkpoint."""
    plain, writes = Case(root / "plain"), Writes()
    plain.kill = writes
    assert plain.start()
    found: dict[str, Any] = {"plain": plain.result(), "masks": plain.masks, "killed": {}}
    last_good = [n for n in writes.of_good if n < writes.going_back[0]][-8:]
    for number in [*last_good, *writes.going_back][::every]:
        case = Case(root / f"killed-{number}")
        case.kill = Writes(number)
        assert not case.start(), number
        case.kill = contextlib.nullcontext
        assert case.start(), number
        found["killed"][number] = case.result()
    return found


# -- layouts and phases ------------------------------------------------------------------------------------------------


def on_layout(root: Path, *overrides: str) -> dict[str, Any]:
    """A run that goes back."""
    case = Case(root, *overrides)
    assert case.start()
    return {"result": case.result(), "masks": case.masks}


class AtTheEnd(Case):
    """Outside once all is gone that is asked for, which only the hard phase has."""

    def loss(self, training: Training) -> float:
        return 2.0 if training.final_phase and training.progress.clock.stopped is None else 1.0


def from_the_hard_phase(root: Path, *overrides: str) -> dict[str, Any]:
    """Goes back from the last step, when masks and gates are permanent."""
    case = AtTheEnd(root, *overrides)
    assert case.start()
    return {"result": case.result(), "masks": case.masks}


class AtOnce(Case):
    """Outside with the first mask."""

    def loss(self, training: Training) -> float:
        return 2.0 if training.pruner.totals.sparsity > 0.0 else 1.0


def nothing(root: Path, *overrides: str) -> dict[str, Any]:
    """Goes back to the dense model."""
    case = AtOnce(root, *overrides)
    assert case.start()
    return {"result": case.result(), "masks": case.masks}


class Heals(Case):
    """One of three slices is outside once more than 30 % are gone, and inside again at the next evaluation."""

    ill: int | None = None  # the step

    def loss(self, training: Training) -> float:
        return 1.0

    def evaluate(self, plain: Any, training: Training, title: str = "eval") -> Any:
        found = super().evaluate(plain, training, title)
        assert found.slices is not None
        assert sum(one["n"] for one in found.slices.values()) == EVALUATED, "of both ranks"
        if self.ill is None and training.pruner.totals.sparsity > 0.3:
            self.ill = training.progress.step
        if training.progress.step != self.ill:
            return found
        of_law = found.slices["loss[domain=law]"]
        return found._replace(slices={**found.slices, "loss[domain=law]": {**of_law, "value": of_law["value"] + 3.0}})


def heals(root: Path, *overrides: str) -> dict[str, Any]:
    """Is held by a slice, and goes on."""
    data = root.with_name("rows.jsonl")
    rows = [{"text": "abcdefgh"[i % 8] * 12, "domain": ("film", "law", "chat")[i % 3]} for i in range(24)]
    if dist.get_rank() == 0:
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dist.barrier()
    more = ("data=json", f"data.train={data}", f"data.eval={data}", "data.slice_column=domain", "data.max_length=16",
            f"data.max_eval_samples={EVALUATED}", "envelope.slices.rise=1", "envelope.slices.least=2")  # fmt: skip
    case = Heals(root, *overrides, *more)
    assert case.start()
    return {"result": case.result(), "masks": case.masks}


def checks(arguments: list[str]) -> dict[str, Any]:
    """`killed EVERY`, or a name of a check with overrides."""
    name, *more = arguments
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        root = Path(from_rank_0(folder)) / "run"
        if name == "killed":
            return killed(root, int(more[0]))
        ways: dict[str, Any] = {"back": on_layout, "end": from_the_hard_phase, "nothing": nothing, "heals": heals}
        found: dict[str, Any] = {}
        for way in name.split(","):
            for kind in more[0].split(","):
                for stage in more[1].split(","):
                    where = root.with_name(f"{way}-{kind}-{stage}")
                    found[where.name] = ways[way](where, kind, f"engine.zero_stage={stage}")
                    dist.barrier()
        return found


if __name__ == "__main__":
    main(checks)
