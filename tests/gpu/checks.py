"""The checks of tests/gpu/run.sh: each is a few commands that a user has, and prints its figure.

A check compares summaries of runs with one another, so it needs no figures from elsewhere. One that fails does not end
the others. Where a package is missing (flash-attn, Liger) the check is skipped, and that is said.
"""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pat.common.files import write_json
from pat.doctor import WELL
from tests.benchmarks.commands import PAT, ROOT, SHOWN, shown

PARITY = ("recipe=parity", "logger=none", "engine.kernels=eager")
# Neurons by L0 gates beside the masks, which may not share a parameter with them.
GATES = (
    "pruners.weights.params=[*self_attn*_proj.weight]",
    "+pruner@pruners.narrow=l0",
    "pruners.narrow.structures=[ffn]",
    "pruners.narrow.budget.keep={ffn:64}",
    "pruners.narrow.schedule.start=5",
    "pruners.narrow.schedule.end=20",
)
# About 0.6 B parameters, in the shape of a Llama.
SHAPE = {
    "hidden_size": 1536,
    "intermediate_size": 4096,
    "num_hidden_layers": 20,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 1024,
}
TOKENS = 1024  # of a sample
STEPS = 20  # of a measured run
LIMIT = 1.05  # seconds a step with pruning, over those without
WAIT_S = 300  # for a command: all of them together should take ten minutes
CLOSE = 0.02  # of the loss before the first step, between two ways to compute it


@dataclass(frozen=True)
class Outcome:
    """What a check came to."""

    name: str
    passed: bool | None  # None: skipped
    said: str
    seconds: float
    commands: tuple[str, ...]


class Failed(Exception):
    """A command or a comparison did."""


class Skipped(Exception):
    """The check cannot run here."""


class Bench:
    """Runs commands in a folder of its own, and notes them."""

    def __init__(self, folder: Path, ranks: int, execute: Callable[..., Any] = subprocess.run) -> None:
        self.folder, self.ranks, self.execute = folder, ranks, execute
        self.commands: list[str] = []

    def run(self, *command: str) -> None:
        """One command, which must succeed."""
        self.commands.append(shown(command))
        try:
            done = self.execute(command, cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S)
        except subprocess.TimeoutExpired as error:
            raise Failed(f"{self.commands[-1]} has not ended after {WAIT_S} s") from error
        if done.returncode:
            raise Failed(f"{self.commands[-1]} failed:\n{(done.stdout + done.stderr)[-SHOWN:]}")

    def train(self, name: str, *keys: str) -> dict[str, Any]:
        """The summary of a run."""
        directory = self.folder / name
        self.run(*PAT, "train", *keys, f"run.dir={directory}", f"engine.world_size={self.ranks}")
        return json.loads((directory / "summary.json").read_text())


def same_bits(bench: Bench) -> str:
    """ZeRO 1, 2 and 3 over NCCL end with the same masks and weights."""
    runs = {stage: bench.train(f"zero{stage}", *PARITY, f"engine.zero_stage={stage}") for stage in (1, 2, 3)}
    said = _equal({f"ZeRO {stage}": summary for stage, summary in runs.items()})
    ranks = {summary["world_size"] for summary in runs.values()}
    return f"{said}; " + ("one rank: NCCL had nothing to sum" if ranks == {1} else f"{max(ranks)} ranks")


def compiled_kernels(bench: Bench) -> str:
    """Compiled kernels of the pruner give the bits of eager ones."""
    runs = {kind: bench.train(f"kernels-{kind}", *PARITY, f"engine.kernels={kind}") for kind in ("eager", "compile")}
    return _equal(runs)


def fp16_overflows(bench: Bench) -> str:
    """fp16 skips the steps that overflow, with masks and with learned gates, and the targets are met all the same."""
    keys = (
        "engine.deepspeed={fp16: {initial_scale_power: 24}}",
        "engine.deepspeed_untested=[fp16.initial_scale_power]",
    )
    summary = bench.train("fp16", *PARITY, "engine.dtype=fp16", *keys, *GATES, "train.num_steps=60")
    if not summary["skipped_steps"]:
        raise Failed("no step overflowed, so nothing was shown: raise the first loss scale")
    met = f"sparsity {summary['sparsity']:.4f} of {summary['target_sparsity']:.4f}"
    return f"{summary['skipped_steps']} steps skipped, {met}"


def fused_adam(bench: Bench) -> str:
    """DeepSpeed's FusedAdam trains as torch's AdamW does, up to rounding."""
    runs = {name: bench.train(name, *PARITY, *keys) for name, keys in _OPTIMIZERS.items()}
    return _near({name: summary["metrics"]["loss"] for name, summary in runs.items()})


_OPTIMIZERS = {
    "adamw": ("optim.implementation=fused",),
    "fused_adam": ("optim.name=fused_adam", "optim.implementation=fused"),
}


def flash_packing(bench: Bench) -> str:
    """Conversations packed for flash-attention have the loss that they have with a mask."""
    _needs("flash_attn")
    _asset(bench, "chats")
    keys = ("recipe=smollm2_chat", "logger=none", "train.num_steps=4", "data.max_eval_samples=16", "pruners={}")
    kinds = ("sdpa", "flash_attention_2")
    runs = {kind: bench.train(kind, *keys, f"model.attn_implementation={kind}") for kind in kinds}
    return _near({kind: summary["initial_loss"] for kind, summary in runs.items()})


def liger(bench: Bench) -> str:
    """Liger's kernels give the loss of plain ones."""
    _needs("liger_kernel")
    keys = ("recipe=parity", "logger=none", "train.num_steps=4", "pruners={}")
    runs = {flag: bench.train(f"liger-{flag}", *keys, f"model.use_liger_kernel={flag}") for flag in ("false", "true")}
    return _near({f"liger {flag}": summary["initial_loss"] for flag, summary in runs.items()})


def step_ratio(bench: Bench) -> str:
    """A step with masks costs hardly more than one without, on a model of about 0.6 B parameters: soft by movement, and
    hard. The dense steps are the mean of a run before and one after."""
    shape = [f"model.config.{key}={value}" for key, value in SHAPE.items()]
    keys = ["recipe=parity", "logger=none", *shape, f"data.max_length={TOKENS}"]
    keys += [f"train.num_steps={STEPS}", "train.eval_every=null", "train.checkpoint_every=null"]
    soft = ["pruners.weights.schedule.start=1", f"pruners.weights.schedule.end={STEPS - 1}"]
    soft += [f"pruners.weights.schedule.hard_from={STEPS - 1}", "pruners.weights.schedule.select_every=4"]
    hard = ["pruners.weights.criterion.name=magnitude", "pruners.weights.schedule.start=1"]
    hard += [f"pruners.weights.schedule.{key}" for key in ("end=2", "hard_from=2", "select_every=1")]
    kinds = {"dense": ["pruners={}"], "soft": soft, "hard": hard, "dense-again": ["pruners={}"]}
    runs = {kind: bench.train(kind, *keys, *more) for kind, more in kinds.items()}
    before, after = (runs[kind] for kind in ("dense", "dense-again"))
    dense = (before["tokens_per_s"] + after["tokens_per_s"]) / 2
    said = f"dense {dense:,.0f} tokens/s, {before['peak_memory_bytes'] / 2**30:.1f} GiB"
    ratios = {kind: dense / runs[kind]["tokens_per_s"] for kind in ("soft", "hard")}
    for kind, ratio in ratios.items():
        speed, memory = runs[kind]["tokens_per_s"], runs[kind]["peak_memory_bytes"] / 2**30
        said += f"; {kind} {ratio:.3f} times the step, {speed:,.0f} tokens/s, {memory:.1f} GiB"
    if max(ratios.values()) > LIMIT:
        raise Failed(f"{said}: more than {LIMIT}")
    return said


def demo(bench: Bench) -> str:
    """The demo, on its tiny stand-in, which needs no network: two models trained, one pruned, exported and compared."""
    folder = bench.folder / "demo"
    bench.run("env", "DEMO_STAND_IN=yes", "PAT_SETUP=active", "bash", "launch/demo.sh", str(folder))
    table = json.loads((folder / "table.json").read_text())
    said = ", ".join(f"{name} {table[name]['accuracy']:.1%} right" for name in ("dense", "pruned"))
    return f"{said}, {table['pruned']['sparsity']:.1%} of the feed-forward weights gone; on {table['pruned']['device']}"


def doctor(bench: Bench) -> str:
    """`pat doctor` finds nothing wrong."""
    file = bench.folder / "doctor.json"
    bench.run(*PAT, "doctor", "--ranks", str(bench.ranks), "--dir", str(bench.folder), "--json", str(file))
    findings = json.loads(file.read_text())["findings"]
    well = sum(finding["state"] == WELL for finding in findings)
    measured = (f"{each['check']} {each['said']}" for each in findings if each["check"] in ("reductions", "saving"))
    return f"{well} of {len(findings)} well; {'; '.join(measured)}"


CHECKS = (
    same_bits, compiled_kernels, fp16_overflows, fused_adam, flash_packing, liger, step_ratio, demo, doctor,
)  # fmt: skip


def _equal(runs: dict[str, dict[str, Any]]) -> str:
    """The hash that all have; Failed where they differ."""
    hashes = {name: (summary["mask_sha256"], summary["weights_sha256"]) for name, summary in runs.items()}
    if len(set(hashes.values())) > 1:
        raise Failed(f"masks or weights differ: { {name: [h[:12] for h in each] for name, each in hashes.items()} }")
    mask, weights = next(iter(hashes.values()))
    return f"{', '.join(runs)}: mask {mask[:16]}, weights {weights[:16]}"


def _near(values: dict[str, float]) -> str:
    low, high = min(values.values()), max(values.values())
    said = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
    if not all(map(math.isfinite, values.values())):
        raise Failed(f"losses are not finite: {said}")
    if high - low > CLOSE * abs(high):
        raise Failed(f"losses differ: {said}")
    return f"losses {said}"


def _needs(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise Skipped(f"{module} is not installed")


def _asset(bench: Bench, name: str) -> None:
    if not (ROOT / "assets" / name).exists():
        bench.run(sys.executable, "launch/assets.py", name)


def outcomes(bench: Bench, checks: Sequence[Callable[[Bench], str]] = CHECKS) -> Iterator[Outcome]:
    """Every check after the one before."""
    for check in checks:
        began, before = time.perf_counter(), len(bench.commands)
        passed: bool | None = True
        try:
            said = check(bench)
        except Failed as failure:
            passed, said = False, str(failure)
        except Skipped as reason:
            passed, said = None, str(reason)
        yield Outcome(check.__name__, passed, said, time.perf_counter() - began, tuple(bench.commands[before:]))


def report(found: Iterator[Outcome], device: str, file: Path) -> int:
    """Print each as it comes and write all; the exit code."""
    done: list[Outcome] = []
    for outcome in found:
        word = {True: "ok", False: "FAILED", None: "skipped"}[outcome.passed]
        print(f"{word:<8} {outcome.name:<18} {outcome.seconds:6.0f} s  {outcome.said}", flush=True)
        done.append(outcome)
        write_json(file, {"device": device, "checks": [asdict(each) for each in done]})
    return int(any(outcome.passed is False for outcome in done))


def main(file: str) -> int:
    """All checks on the GPUs that are here."""
    import torch

    if not torch.cuda.is_available():
        print("tests/gpu: there is no GPU, so nothing was checked")
        return 0
    device = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    print(f"tests/gpu: {device}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        return report(outcomes(Bench(Path(folder), min(torch.cuda.device_count(), 2))), device, Path(file))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
