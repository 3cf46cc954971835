"""Half of the feed-forward neurons gone: what is left of the quality by method, and of what one would do instead.

    python launch/assets.py reviews && python tests/benchmarks/structured.py reviews
    python launch/assets.py sotu && python tests/benchmarks/structured.py sotu

`reviews`: an encoder's accuracy on film reviews; `sotu`: the perplexity of a 135 M Llama on addresses it has not seen.
Every run is one `pat train` with one rank and one thread, the same steps, data and schedule; no method is tuned. `once,
then fine-tuned` removes the smallest neurons before the first step. With distillation the teacher is the dense model of
the same seed, which has had as many steps of its own. `dense, int8` is that dense model with torchao's dynamic int8
linear layers (left out where torchao is not installed): what needs no training at all. A finished run is not repeated.

`--frozen` asks which units a method chooses, and nothing else: runs start from the dense model and leave its weights
as they are (learning rate 1e-12, below their rounding), so that all that differs is what is kept.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import shutil
import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.commands import ONE_THREAD, ROOT, pat, spread

GATE = "pruners.narrow.gate.name"
ONCE = ["pruners.narrow.schedule.name=one_shot"]
ONCE += [f"pruners.narrow.schedule.{key}" for key in ("start=0", "end=null", "hard_from=0")]
METHODS = {  # overrides of the recipe
    "obs": [],
    "once, then fine-tuned": [f"{GATE}=magnitude", *ONCE],
    "magnitude": [f"{GATE}=magnitude"],
    "activation norm": [f"{GATE}=activation"],
    "taylor": [f"{GATE}=taylor"],
    "structured movement": [f"{GATE}=movement"],
    "l0": [f"{GATE}=l0"],
    "smooth": [f"{GATE}=smooth"],
}
WEIGHT, TEMPERATURE = 0.5, 2.0


@dataclass(frozen=True)
class Subject:
    """What is pruned, and how it is judged."""

    dense: str  # recipes
    narrow: str
    metric: str
    seeds: tuple[int, ...]
    steps: int
    unpruned: list[str] = field(default_factory=list)  # overrides of the dense recipe alone
    overrides: list[str] = field(default_factory=list)  # of both recipes
    ramp: list[str] = field(default_factory=list)  # of methods that need one, whose gates are not calibrated


def ramp(start: float, end: float, hard_from: float) -> list[str]:
    """Overrides for a schedule with a soft phase."""
    return [f"pruners.narrow.schedule.{key}" for key in ("name=linear", f"{start=}", f"{end=}", f"{hard_from=}")]


SUBJECTS = {
    "reviews": Subject(
        "reviews_dense",
        "reviews_narrow",
        "accuracy",
        seeds=(0, 1),
        steps=120,
        ramp=["~pruners.narrow.gate.num_samples", *ramp(0.1, 0.5, 0.7)],
    ),
    "sotu": Subject(
        "sotu_dense",
        "sotu_narrow",
        "perplexity",
        seeds=(0,),
        steps=80,
        unpruned=["optim.lr=5.0e-5"],
        overrides=["data.max_length=128", "data.max_eval_samples=64", "train.checkpoint_every=null"],
        ramp=["optim.lr=5.0e-5", "pruners.narrow.schedule.select_every=4", *ramp(0.1, 0.6, 0.7)],
    ),
}


def trained(directory: Path, recipe: str, overrides: list[str], metric: str, steps: int) -> dict[str, Any]:
    """The figures of one run, trained and exported now if it is not there."""
    export = directory.with_name(f"{directory.name}-export")
    if not (export / "export.json").exists():
        where = [f"run.dir={directory}", f"train.num_steps={steps}"]
        pat("train", f"recipe={recipe}", *where, *ONE_THREAD, *overrides)
        shutil.rmtree(export, ignore_errors=True)
        pat("export", str(directory), "--out", str(export))
        shutil.rmtree(directory / "checkpoints")  # large, and not needed again
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["step"] == steps, f"{directory} holds a run of {summary['step']} steps: give another --folder"
    parameters = json.loads((export / "export.json").read_text())["after"]["parameters"]
    value = summary["metrics"][metric]
    print(f"{directory.name:40} {metric} {value:.4f}  parameters {parameters:,}", flush=True)
    return {"value": value, "parameters": parameters}


def int8(subject: Subject, folder: Path) -> float | None:
    """The metric of a folder with torchao's dynamic int8 linear layers; None without torchao."""
    try:
        quantization = importlib.import_module("torchao.quantization")  # not one of the project's dependencies
    except ImportError:
        return None
    import torch

    from pat.config.compose import compose
    from pat.evaluation.folders import evaluate
    from pat.export.loader import load

    found: list[dict[str, float]] = []

    def run(config: Any) -> int:
        model = load(folder, dtype=torch.float32).eval()
        quantization.quantize_(model, quantization.Int8DynamicActivationInt8WeightConfig())
        found.append(evaluate(config, folder, model))
        return 0

    compose([f"recipe={subject.dense}", *subject.overrides], run)
    return found[0][subject.metric]


def main() -> None:
    """Run all, write the result file and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("--steps", type=int, help="of every run")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, help="how many")
    parser.add_argument("--frozen", action="store_true", help="choose units of the dense model, train nothing")
    parser.add_argument("--folder", type=Path, help="of the runs (default: runs/structured-SUBJECT)")
    parser.add_argument("--out", type=Path, help="result (default: results/structured_SUBJECT.json)")
    options = parser.parse_args()
    subject: Subject = SUBJECTS[options.subject]
    steps = options.steps or subject.steps
    seeds = tuple(range(options.seeds)) if options.seeds else subject.seeds
    folder = (options.folder or ROOT / "runs" / f"structured-{options.subject}").resolve()
    name = f"frozen_{options.subject}" if options.frozen else f"structured_{options.subject}"
    out = options.out or ROOT / "results" / f"{name}.json"

    def job(item: tuple[str, str, list[str]]) -> dict[str, Any]:
        name, recipe, overrides = item
        return trained(folder / name, recipe, [*subject.overrides, *overrides], subject.metric, steps)

    with ThreadPoolExecutor(options.jobs) as pool:
        dense = list(
            pool.map(job, [(f"dense-{seed}", subject.dense, [*subject.unpruned, f"seed={seed}"]) for seed in seeds])
        )
        rows: list[tuple[str, list[dict[str, Any]]]] = [("dense, fine-tuned", dense)]
        quantized = [None if options.frozen else int8(subject, folder / f"dense-{seed}-export") for seed in seeds]
        if None not in quantized:
            pairs = zip(quantized, dense, strict=True)
            rows.append(("dense, int8", [{"value": v, "parameters": d["parameters"]} for v, d in pairs]))
        jobs, names = [], []
        for method in options.methods:
            for taught in (False,) if options.frozen else (False, True):
                names.append(f"{method}{' + distillation' if taught else ''}")
                for seed in seeds:
                    ramped = [] if method == "obs" else subject.ramp
                    overrides = [*ramped, *METHODS[method], f"seed={seed}"]
                    teacher = folder / f"dense-{seed}-export"
                    if options.frozen:
                        overrides += [f"model.path={teacher}", "optim.lr=1.0e-12", "optim.weight_decay=0.0"]
                        overrides += ["optim.head_lr=1.0e-12"] if options.subject == "reviews" else []
                    if taught:
                        overrides += [f"distill.teacher={teacher}", f"distill.weight={WEIGHT}"]
                        overrides += [f"distill.temperature={TEMPERATURE}"]
                    slug = names[-1].replace(", ", "-").replace(" + ", "-").replace(" ", "-")
                    slug = f"frozen-{slug}" if options.frozen else slug
                    jobs.append((f"{slug}-{seed}", subject.narrow, overrides))
        results = list(pool.map(job, jobs))
    each = len(seeds)
    rows += [(name, results[i * each : (i + 1) * each]) for i, name in enumerate(names)]
    table = []
    for name, figures in rows:
        values = [figure["value"] for figure in figures]
        mean = statistics.mean(values)
        table.append({"method": name, "parameters": figures[0]["parameters"], "mean": mean, "seeds": values})
    said = {
        "command": shlex.join(
            ["python", "tests/benchmarks/structured.py", options.subject, f"--steps={steps}"]
            + (["--frozen"] if options.frozen else [])
            + ([f"--seeds={options.seeds}"] if options.seeds else [])
            + ["--methods", *options.methods]
        ),
        "device": "CPU, one thread per run",
        "metric": subject.metric,
        "steps": steps,
        "distillation": {"weight": WEIGHT, "temperature": TEMPERATURE},
        "table": table,
    }
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(said, indent=1) + "\n")
    print(f"\n{'method':38} {'parameters':>11} {subject.metric:>10} {'spread':>8}")
    for row in table:
        print(f"{row['method']:38} {row['parameters']:11,} {row['mean']:10.4f} {spread(row['seeds']):8.4f}")


if __name__ == "__main__":
    main()
