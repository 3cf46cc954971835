"""Forks of a dense part on real engines: with how much they will prune, as runs that knew it from the start."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import torch.distributed as dist

from pat.checkpoint.fork import fork
from pat.config import compose, frozen
from pat.run.directory import UNTIL, RunDir
from pat.schema import Config, PrunerConfig
from pat.train import StopsHere, fit
from pat.training import setup
from tests.distributed.harness import from_rank_0, main

# An evaluation falls on the fork, and the rate of the steps before it could know of the cuts.
SHORT = (
    "recipe=parity", "logger=none", "logger.progress=none", "engine.kernels=eager", "train.num_steps=10",
    "train.eval_every=4", "train.log_every=1", "train.checkpoint_every=4", "data.max_length=16",
    "data.max_eval_samples=4", "optim.lr_schedule=per_cut",
)  # fmt: skip
RAMP = {"start": 4, "end": 7, "hard_from": 8, "select_every": 1}
MOST, LESS = 0.8, 0.35
HEAT = 9  # after the last cut
GATES: dict[str, Any] = {"name": "l0", "lr": 0.1}


def pruners(kind: str, sparsity: float) -> dict[str, Any]:
    if kind == "weights":
        return {}
    return {
        "pruners": {
            "narrow": PrunerConfig(
                structures=["ffn"],
                gate=GATES,
                budget={"name": "shape", "keep": {"ffn": 1.0 - sparsity}, "multiple_of": 8},
                schedule={"name": "linear", **RAMP},
            )
        }
    }


def run(folder: Path, kind: str, sparsity: float, *overrides: str) -> dict[str, Any]:
    """A run in that directory, from what stands there to where it ends."""
    directory = RunDir(folder)

    def freeze(config: Config) -> int:
        changed = config.changed(engine__world_size=dist.get_world_size(), **pruners(kind, sparsity))
        frozen.freeze(changed, folder)
        return 0

    if dist.get_rank() == 0:
        ramp = [f"pruners.weights.schedule.{key}={step}" for key, step in RAMP.items()]
        budget = f"pruners.weights.budget.sparsity={sparsity}"
        compose.compose([*SHORT, *ramp, budget, f"run.dir={folder}", *overrides], freeze)
    dist.barrier()
    training = setup.build(folder)
    began = training.progress.step
    with contextlib.suppress(StopsHere):
        fit(training)
    found = {"began": began, "step": training.progress.step, "hashes": training.pruner.hashes()}
    found |= {"sparsity": training.pruner.totals.sparsity, "metrics": training.progress.metrics}
    found |= {"dense": training.progress.dense_metrics}
    training.tracker.close()
    if dist.get_rank() == 0:
        found["lines"] = logged(directory)
    training.watchdog.stop()
    training.engine.destroy()
    del training
    gc.collect()
    dist.barrier()
    return found


def logged(run: RunDir) -> list[dict[str, Any]]:
    """What metrics.jsonl says of steps and evaluations, but for times."""
    kept = ("train/loss", "train/lr", "eval/loss", "dense/loss")
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{key: line[key] for key in ("step", *kept) if key in line} for line in lines if line.keys() & set(kept)]


def _until(run: RunDir) -> list[dict[str, Any]]:
    """The lines of the evaluation that a run.until=STEP ends with."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [line for line in lines if f"{UNTIL}/loss" in line]


def checks(arguments: list[str]) -> dict[str, Any]:
    """KIND,... ZERO: of each kind the dense part, a fork of it, which stops on its way as in a race, and the run that
    the fork must equal."""
    kinds, stage = arguments
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        root = Path(from_rank_0(scratch))
        for kind in kinds.split(","):
            zero = f"engine.zero_stage={stage}"
            dense, forked, plain = (root / f"{kind}-{name}" for name in ("dense", "forked", "plain"))
            made = {"dense": run(dense, kind, MOST, zero, "run.until=first_cut")}
            if dist.get_rank() == 0:
                fork(RunDir(dense), RunDir(forked), made["dense"]["step"])
            dist.barrier()
            made["heat"] = run(forked, kind, LESS, zero, f"run.until={HEAT}")
            made["until"] = from_rank_0(_until(RunDir(forked)))
            made |= {"forked": run(forked, kind, LESS, zero), "plain": run(plain, kind, LESS, zero)}
            made["left"] = from_rank_0(_until(RunDir(forked)))
            found[kind] = made
    return found


if __name__ == "__main__":
    main(checks)
