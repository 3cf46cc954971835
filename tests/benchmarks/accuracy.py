"""Accuracy on the film reviews at several sparsities: magnitude against movement, the same steps, two seeds.

    python launch/assets.py reviews && python tests/benchmarks/accuracy.py [--steps 160] [--jobs 2]

Every run is one `pat train recipe=reviews` (the feed-forward matrices are pruned) with one rank and one thread. Movement
runs from the paper's start, scores of 0, and from the magnitude as the prior. Each method gets the same tuning budget,
fixed beforehand: each of LEARNING_RATES once, at 80 % with a seed of its own; the better one is used everywhere. The
evaluation split is never trained on. A finished run is not repeated, so the command can be interrupted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
METHODS = {  # overrides of the recipe
    "magnitude": ["pruners.weights.criterion.name=magnitude"],
    "movement": ["pruners.weights.criterion.prior=0.0"],
    "movement, prior 1": ["pruners.weights.criterion.prior=1.0"],
}
SPARSITIES = (0.5, 0.8, 0.95)
SEEDS = (0, 1)
TUNING_SEED, TUNING_SPARSITY = 7, 0.8
LEARNING_RATES = (1e-4, 2e-4)


def run(name: str, recipe: str, overrides: list[str], folder: Path, steps: int) -> dict[str, Any]:
    """The summary of one run, trained now if it is not there."""
    directory = folder / name
    command = [
        sys.executable, "-m", "pat.cli", "train", f"recipe={recipe}", f"run.dir={directory}", f"train.num_steps={steps}",
        "engine.world_size=1", "engine.threads_per_rank=1", "logger=none", "train.keep_last=1", *overrides,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nfailed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    summary = json.loads((directory / "summary.json").read_text())
    for checkpoint in directory.glob("checkpoints/*/deepspeed"):  # large, and not needed again
        subprocess.run(["rm", "-r", str(checkpoint)], check=True)
    print(f"{name:32} accuracy {summary['metrics']['accuracy']:.4f}  sparsity {summary['sparsity']:.4f}", flush=True)
    return {"accuracy": summary["metrics"]["accuracy"], "sparsity": summary["sparsity"], "mask": summary["mask_sha256"]}


def pruned(method: str, sparsity: float, seed: int, lr: float) -> tuple[str, str, list[str]]:
    """A pruning run: name, recipe, overrides."""
    return (
        f"{method.replace(', ', '-').replace(' ', '')}-{sparsity}-{seed}-{lr}",
        "reviews",
        [*METHODS[method], f"pruners.weights.budget.sparsity={sparsity}", f"seed={seed}", f"optim.lr={lr}"],
    )


def main() -> None:
    """Run all, write the result file and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "accuracy")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "accuracy.json")
    options = parser.parse_args()
    with ThreadPoolExecutor(options.jobs) as pool:

        def all_of(jobs: list[tuple[str, str, list[str]]]) -> list[dict[str, Any]]:
            return list(pool.map(lambda job: run(*job, options.folder, options.steps), jobs))

        tuning = [(m, lr) for m in (*METHODS, "dense") for lr in LEARNING_RATES]
        tried = all_of(
            [
                (f"dense-{TUNING_SEED}-{lr}", "reviews_dense", [f"seed={TUNING_SEED}", f"optim.lr={lr}"])
                if m == "dense"
                else pruned(m, TUNING_SPARSITY, TUNING_SEED, lr)
                for m, lr in tuning
            ]
        )
        scores = {case: result["accuracy"] for case, result in zip(tuning, tried, strict=True)}
        best = {m: max(LEARNING_RATES, key=lambda lr, m=m: scores[m, lr]) for m in (*METHODS, "dense")}
        rows: list[tuple[str, float]] = [("base model, fine-tuned head", 0.0), ("dense, fine-tuned", 0.0)]
        jobs = [
            (f"head-{seed}", "reviews_dense", [f"seed={seed}", 'optim.trainable=["classifier.*"]']) for seed in SEEDS
        ]
        jobs += [
            (f"dense-{s}-{best['dense']}", "reviews_dense", [f"seed={s}", f"optim.lr={best['dense']}"]) for s in SEEDS
        ]
        for method in METHODS:
            for sparsity in SPARSITIES:
                rows.append((method, sparsity))
                jobs += [pruned(method, sparsity, seed, best[method]) for seed in SEEDS]
        results = all_of(jobs)
    table = []
    for i, (method, sparsity) in enumerate(rows):
        values = [r["accuracy"] for r in results[i * len(SEEDS) : (i + 1) * len(SEEDS)]]
        table.append({"method": method, "sparsity": sparsity, "mean": statistics.mean(values), "seeds": values})
    said = {
        "command": f"python tests/benchmarks/accuracy.py --steps {options.steps}",
        "device": "CPU, one thread per run",
        "steps": options.steps,
        "tuning": [{"method": m, "lr": lr, "accuracy": a} for (m, lr), a in scores.items()],
        "lr": best,
        "table": table,
    }
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(said, indent=1) + "\n")
    print(f"\n{'method':28} {'sparsity':>8} {'accuracy':>9} {'spread':>7}")
    for row in table:
        spread = max(row["seeds"]) - min(row["seeds"])
        print(f"{row['method']:28} {row['sparsity']:8.0%} {row['mean']:9.4f} {spread:7.4f}")


if __name__ == "__main__":
    main()
