"""A visit: starts real ranks on this machine, and judges the results in the visit's folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pat.common.files import read_json
from pat.common.text import size_in_words
from pat.config.compose import compose
from pat.config.frozen import freeze, set_aside
from pat.config.quoting import quoted
from pat.doctor import BROKEN, MIND, WELL, Finding
from pat.doctor.ranks import STAGES, stage_dir
from pat.launch.single_node import launch
from pat.pruning import registry
from pat.run.directory import ExitCode, RunDir, read_exit
from pat.schema import Config
from pat.training.preflight import prepare

STEPS, HALF = 8, 4
SLOW = 100e6  # bytes per second below which checkpoints slow a run noticeably

_PROGRAM = ("--module", "pat.doctor.ranks")


def configs(folder: Path, ranks: int, given: Sequence[str] = ()) -> dict[int, Config]:
    """A run at each ZeRO stage, a few steps long, with a checkpoint halfway: the parity recipe, or the given
    keys of `pat train`. Raises ValueError for keys of no possible run."""
    by_stage: dict[int, Config] = {}
    parity = [
        "recipe=parity", "engine.kernels=eager", f"train.global_batch_size={ranks * max(1, 8 // ranks)}",
        f"data.cache_dir={quoted(folder / 'cache')}",
        "pruners.weights.schedule={start: 1, end: 6, hard_from: 6, select_every: 2}",
    ]  # fmt: skip
    own = [*given, *_shortened(given)] if given else parity
    for stage in STAGES:
        overrides = [
            *own, "logger=none", "logger.progress=none", f"engine.world_size={ranks}",
            f"engine.zero_stage={stage}", f"run.dir={quoted(stage_dir(folder, stage))}", f"train.num_steps={STEPS}",
            f"train.checkpoint_every={HALF}", "train.eval_every=null", "train.early_stopping_patience=null",
            "envelope={}",
        ]  # fmt: skip
        compose(overrides, lambda config, stage=stage: by_stage.update({stage: config}) or 0)
    return by_stage


def _shortened(given: Sequence[str]) -> list[str]:
    """Keys that fit the schedules of a run into the few steps of a visit."""
    made: list[Config] = []
    compose([*given, "logger=none"], lambda config: made.append(config) or 0)
    keys = ["optim.warmup=0"]
    for name, pruner in made[0].pruners.items():
        schedule = registry.build("schedule", pruner.schedule)
        fitting = {"start": 1, "end": 6, "hard_from": 6, "select_every": 2}
        if not schedule.needs_end:
            fitting = {"start": 2 if schedule.start else 0}
        keys += [f"pruners.{name}.schedule.{key}={step}" for key, step in fitting.items()]
    return keys


def make_ready(made: Mapping[int, Config], folder: Path) -> Config:
    """Freeze the runs and prepare their data; the config of the visit itself."""
    first = made[STAGES[0]].changed(run__dir=str(folder))
    for config in (*made.values(), first):
        set_aside(config, Path(config.run.dir))  # what an earlier visit has found is not what this one finds
        freeze(config, Path(config.run.dir))
    prepare(first, folder)
    return first


def start_ranks(folder: Path, made: Mapping[int, Config]) -> int:
    """Start the ranks once, for all checks of one start; returns their exit code."""
    first = make_ready(made, folder)
    with output_to(folder / "output.txt"):
        return _unless_asked_to_end(launch(folder, first, _PROGRAM))


def half_way(folder: Path, made: Mapping[int, Config]) -> Config:
    """A copy of the run at ZeRO 2 that has got no further than the checkpoint in its middle."""
    source, target = RunDir(stage_dir(folder, 2)), RunDir(folder / "resumed")
    shutil.rmtree(target.path, ignore_errors=True)
    shutil.copytree(source.path, target.path)
    for path in (target.summary, target.exit):
        path.unlink(missing_ok=True)
    for path in target.checkpoints.iterdir():
        if path.name != f"step-{HALF:08d}":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    config = made[2].changed(run__dir=str(target.path), run__resume="must")
    freeze(config, target.path)
    return config


def go_on(folder: Path, made: Mapping[int, Config]) -> int:
    """A second start: the run at ZeRO 2 again, from the checkpoint in its middle; the ranks' exit code."""
    config = half_way(folder, made)
    with output_to(folder / "output.txt"):
        return _unless_asked_to_end(launch(Path(config.run.dir), config))


def _unless_asked_to_end(code: int) -> int:
    """The ranks' exit code; SystemExit where a signal has ended them, for then nothing has been found out."""
    if code in (ExitCode.PREEMPTED, ExitCode.INTERRUPTED):
        raise SystemExit(int(code))
    return code


@contextlib.contextmanager
def output_to(file: Path) -> Iterator[None]:
    """Redirect the output of this process and its children to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    try:
        with open(file, "a") as sink:
            for number in (1, 2):
                os.dup2(sink.fileno(), number)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in zip((1, 2), kept, strict=True):
            os.dup2(old, number)
            os.close(old)


# -- what they left ----------------------------------------------------------------------------------------------------


def judge_start(folder: Path, code: int) -> Finding:
    """The ranks were started, met and left."""
    if code == ExitCode.DONE:
        return Finding("ranks", WELL, "they start, meet, train and leave")
    said = (read_exit(folder) or {}).get("message") or f"they left with code {code}"
    return Finding("ranks", BROKEN, f"{said}; see {folder / 'output.txt'} and {folder / 'logs'}", {"code": code})


def judge_reductions(folder: Path) -> Finding:
    """Sums over ranks are those of exact arithmetic, and always the same bits."""
    measured = (read_json(folder / "ranks.json") or {}).get("reductions")
    if measured is None:
        return Finding("reductions", BROKEN, "the ranks did not get that far")
    faults = []
    if not measured["exact"]:
        faults.append("sums of whole numbers are wrong")
    if measured["error"] > measured["allowed"]:
        faults.append(
            f"sums are off by {measured['error']:.1e} of their size, {measured['allowed']:.1e} would be rounding"
        )
    if measured["different_bits"] > 1:
        faults.append("the same sum does not always have the same bits")
    said = " and ".join(faults) or f"exact to {measured['error']:.1e}, and the same bits on every rank, every time"
    return Finding("reductions", BROKEN if faults else WELL, said, measured)


def judge_saving(folder: Path) -> Finding:
    """How fast all ranks together write."""
    measured = (read_json(folder / "ranks.json") or {}).get("saving")
    if measured is None:
        return Finding("saving", BROKEN, "the ranks did not get that far")
    rate = measured["bytes"] / measured["seconds"]
    said = f"{rate / 1e6:,.0f} MB/s ({size_in_words(measured['bytes'])} by all ranks at once, synced)"
    return Finding("saving", WELL if rate >= SLOW else MIND, said, measured | {"bytes_per_s": rate})


def results(run_dir: Path) -> dict[str, Any] | None:
    """The hashes at the end of a run that was finished; None else."""
    summary = read_json(RunDir(run_dir).summary)
    return {key: summary.get(key) for key in ("mask_sha256", "weights_sha256")} if summary else None


def judge_stages(folder: Path) -> Finding:
    """Masks and weights are the same bits at ZeRO 1, 2 and 3."""
    by_stage = {f"ZeRO {stage}": results(stage_dir(folder, stage)) for stage in STAGES}
    missing = [name for name, one in by_stage.items() if one is None]
    if missing:
        return Finding("ZeRO 1, 2, 3", BROKEN, f"{' and '.join(missing)} did not finish", {"hashes": by_stage})
    equal = {
        what: len({one[key] for one in by_stage.values() if one}) == 1
        for what, key in (("masks", "mask_sha256"), ("weights", "weights_sha256"))
    }
    differ = [what for what, same in equal.items() if not same]
    if differ:
        said = f"{' and '.join(differ)} differ between stages, so results depend on the stage here"
        return Finding("ZeRO 1, 2, 3", BROKEN, said, {"hashes": by_stage})
    return Finding("ZeRO 1, 2, 3", WELL, f"masks and weights are equal, bit for bit, after {STEPS} steps", by_stage)


def judge_resume(folder: Path, code: int, by: str = "in new processes") -> Finding:
    """A run that goes on from a checkpoint ends with the same bits."""
    whole, resumed = results(stage_dir(folder, 2)), results(folder / "resumed")
    if code or whole is None or resumed is None:
        said = (read_exit(folder / "resumed") or {}).get("message") or f"the second start left with code {code}"
        return Finding("resume", BROKEN, f"it did not finish: {said}", {"code": code})
    if whole != resumed:
        return Finding("resume", BROKEN, "a run that was interrupted ends with other weights or masks")
    return Finding("resume", WELL, f"from step {HALF}, {by}, it ends with the same bits", resumed)


def visit(folder: Path, ranks: int, given: Sequence[str] = ()) -> Iterator[Callable[[], Finding]]:
    """The checks that need ranks, in the order in which they are told."""
    made = configs(folder, ranks, given)
    started = f"starting {ranks} rank{'s' * (ranks > 1)}, which reduce, save"
    _say(f"{started} and train {STEPS} steps at ZeRO 1, 2 and 3: minutes where cores are busy")
    code = start_ranks(folder, made)
    yield lambda: judge_start(folder, code)
    yield lambda: judge_reductions(folder)
    yield lambda: judge_stages(folder)
    if results(stage_dir(folder, 2)):
        _say(f"starting them again, to go on from step {HALF} at ZeRO 2")
        again = go_on(folder, made)
        yield lambda: judge_resume(folder, again)
    yield lambda: judge_saving(folder)


def _say(what: str) -> None:
    """On stderr, at once: what follows has no output of its own."""
    print(f"{what} ...", file=sys.stderr, flush=True)
