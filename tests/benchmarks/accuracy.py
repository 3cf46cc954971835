"""Accuracy on the film reviews at several sparsities, by criterion, the same steps, two seeds.

    python launch/assets.py reviews && python tests/benchmarks/accuracy.py [--steps 120] [--jobs 2]
    python tests/benchmarks/accuracy.py --methods "movement, prior by wanda" --sparsities 0.8 --seeds 3 --no-dense

Every run is one `pat train recipe=reviews` (feed-forward matrices are pruned) with one rank and one thread, and the
criterion and schedule below in place of the recipe's. Movement comes with its default prior, as published without one,
with a constant one, and with Wanda's score as the prior. ALPS and Wanda, which are calibrated, cut once, after 30 %
of the steps; ALPS fits no layer afterwards. Nothing is tuned. The evaluation split is never trained on. A finished run
is not repeated, so the command can be interrupted.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.benchmarks.commands import ONE_THREAD, ROOT, pat, spread

SCOPE = "pruners.weights.scope=matrix"
GRADUAL = [SCOPE, *(f"pruners.weights.schedule.{k}" for k in ("name=cubic", "start=0.1", "end=0.6", "select_every=5"))]
ONE_CUT = [  # of a calibrated criterion: the dense model learns for a third of the steps, the rest heal
    SCOPE,
    "pruners.weights.criterion.gradient_samples=0",
    "pruners.weights.criterion.num_samples=512",
    "pruners.weights.schedule.name=one_shot",
    "pruners.weights.schedule.start=0.3",
]
MOVEMENT = "pruners.weights.criterion.name=movement"
INPUTS = "pruners.weights.criterion.num_samples=2048"  # sentences, of which many are short
METHODS = {  # overrides of the recipe
    "magnitude": ["pruners.weights.criterion.name=magnitude", *GRADUAL],
    "movement": [MOVEMENT, *GRADUAL],
    "movement, as published": [MOVEMENT, "pruners.weights.criterion.prior=0.0", *GRADUAL],
    "movement, prior 10": [MOVEMENT, "pruners.weights.criterion.prior=10.0", *GRADUAL],
    "movement, prior by wanda": [MOVEMENT, "pruners.weights.criterion.prior_score=wanda", INPUTS, *GRADUAL],
    "wanda": ["pruners.weights.criterion.name=wanda", *ONE_CUT],
    "alps": ["pruners.weights.criterion.name=alps", *ONE_CUT],
}
SPARSITIES = (0.5, 0.8, 0.95)


def run(name: str, recipe: str, overrides: list[str], folder: Path, steps: int) -> dict[str, Any]:
    """The summary of one run, trained now if it is not there."""
    directory = folder / name
    if not (directory / "summary.json").exists():
        train(directory, recipe, overrides, steps)
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["step"] == steps, f"{directory} holds a run of {summary['step']} steps: give another --folder"
    print(f"{name:32} accuracy {summary['metrics']['accuracy']:.4f}  sparsity {summary['sparsity']:.4f}", flush=True)
    return {"accuracy": summary["metrics"]["accuracy"], "sparsity": summary["sparsity"], "mask": summary["mask_sha256"]}


def train(directory: Path, recipe: str, overrides: list[str], steps: int) -> None:
    """`pat train`, and away with its checkpoints: they are large, and not needed again."""
    where = [f"run.dir={directory}", f"train.num_steps={steps}"]
    pat("train", f"recipe={recipe}", *where, *ONE_THREAD, *overrides)
    shutil.rmtree(directory / "checkpoints")


def pruned(method: str, sparsity: float, seed: int) -> tuple[str, str, list[str]]:
    """A pruning run: name, recipe, overrides."""
    name = f"{method.replace(', ', '-').replace(' ', '')}-{sparsity}-{seed}"
    return name, "reviews", [*METHODS[method], f"pruners.weights.budget.sparsity={sparsity}", f"seed={seed}"]


def main() -> None:
    """Run all, write the result file and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--sparsities", nargs="+", type=float, default=list(SPARSITIES))
    parser.add_argument("--seeds", type=int, default=2, help="how many")
    parser.add_argument("--no-dense", action="store_true", help="only the methods")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "accuracy")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "accuracy.json")
    options = parser.parse_args()
    seeds = range(options.seeds)
    with ThreadPoolExecutor(options.jobs) as pool:

        def all_of(jobs: list[tuple[str, str, list[str]]]) -> list[dict[str, Any]]:
            return list(pool.map(lambda job: run(job[0], job[1], job[2], options.folder, options.steps), jobs))

        rows: list[tuple[str, float]] = []
        jobs: list[tuple[str, str, list[str]]] = []
        if not options.no_dense:
            rows = [("base model, fine-tuned head", 0.0), ("dense, fine-tuned", 0.0)]
            head = 'optim.trainable=["classifier.*"]'
            jobs = [(f"head-{seed}", "reviews_dense", [f"seed={seed}", head]) for seed in seeds]
            jobs += [(f"dense-{seed}", "reviews_dense", [f"seed={seed}"]) for seed in seeds]
        for method in options.methods:
            for sparsity in options.sparsities:
                rows.append((method, sparsity))
                jobs += [pruned(method, sparsity, seed) for seed in seeds]
        results = all_of(jobs)
    table = []
    for i, (method, sparsity) in enumerate(rows):
        values = [r["accuracy"] for r in results[i * len(seeds) : (i + 1) * len(seeds)]]
        table.append({"method": method, "sparsity": sparsity, "mean": statistics.mean(values), "seeds": values})
    said = {
        "command": shlex.join(["python", "tests/benchmarks/accuracy.py", *sys.argv[1:]]),
        "device": "CPU, one thread per run",
        "steps": options.steps,
        "table": table,
    }
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(said, indent=1) + "\n")
    print(f"\n{'method':28} {'sparsity':>8} {'accuracy':>9} {'spread':>7}")
    for row in table:
        print(f"{row['method']:28} {row['sparsity']:8.0%} {row['mean']:9.4f} {spread(row['seeds']):7.4f}")


if __name__ == "__main__":
    main()
