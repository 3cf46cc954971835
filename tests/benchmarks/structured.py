"""Half of the feed-forward neurons gone: accuracy on the film reviews by method, and of what one would do instead.

    python launch/assets.py reviews && python tests/benchmarks/structured.py [--steps 120] [--jobs 2]

Every run is one `pat train recipe=reviews_narrow` with one rank and one thread, the same steps, data and schedule; no
method is tuned. `once, then fine-tuned` removes the smallest neurons before the first step. With distillation the
teacher is the dense model of the same seed, which has had as many steps of its own. `dense, int8` is that dense model
with torchao's dynamic int8 linear layers (left out where torchao is not installed): what needs no training at all. A
finished run is not repeated.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GATE = "pruners.narrow.gate.name"
METHODS = {  # overrides of the recipe
    "once, then fine-tuned": [f"{GATE}=magnitude", "pruners.narrow.schedule.name=one_shot"]
    + [f"pruners.narrow.schedule.{key}" for key in ("start=0", "end=null", "hard=0")],
    "magnitude": [f"{GATE}=magnitude"],
    "activation norm": [f"{GATE}=activation"],
    "taylor": [f"{GATE}=taylor"],
    "structured movement": [f"{GATE}=movement"],
    "l0": [f"{GATE}=l0"],
    "smooth": [f"{GATE}=smooth"],
}
SEEDS = (0, 1)
WEIGHT, TEMPERATURE = 0.5, 2.0


def pat(*arguments: str) -> None:
    """One command, which must succeed."""
    command = [sys.executable, "-m", "pat.cli", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nfailed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def trained(directory: Path, recipe: str, overrides: list[str], steps: int) -> dict[str, Any]:
    """The summary of one run, trained and exported now if it is not there."""
    export = directory.with_name(f"{directory.name}-export")
    if not (export / "export.json").exists():
        fixed = ["engine.world_size=1", "engine.threads_per_rank=1", "logger=none", "train.keep_last=1"]
        where = [f"run.dir={directory}", f"train.num_steps={steps}"]
        pat("train", f"recipe={recipe}", *where, *fixed, *overrides)
        shutil.rmtree(export, ignore_errors=True)
        pat("export", str(directory), "--out", str(export))
        shutil.rmtree(directory / "checkpoints")  # large, and not needed again
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["step"] == steps, f"{directory} holds a run of {summary['step']} steps: give another --folder"
    exported = json.loads((export / "export.json").read_text())
    accuracy = summary["metrics"]["accuracy"]
    print(f"{directory.name:40} accuracy {accuracy:.4f}  parameters {exported['after']['parameters']:,}", flush=True)
    return {"accuracy": accuracy, "parameters": exported["after"]["parameters"]}


def int8(folder: Path) -> float | None:
    """Accuracy of a folder with torchao's dynamic int8 linear layers; None without torchao."""
    try:
        quantization = importlib.import_module("torchao.quantization")  # not one of the project's dependencies
    except ImportError:
        return None
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    quantization.quantize_(model, quantization.Int8DynamicActivationInt8WeightConfig())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [json.loads(line) for line in (ROOT / "assets" / "reviews" / "eval.jsonl").read_text().splitlines()]
    names, right = model.config.id2label, 0
    with torch.no_grad():
        for start in range(0, len(rows), 64):
            part = rows[start : start + 64]
            batch = tokenizer(
                [row["text"] for row in part], truncation=True, max_length=40, padding=True, return_tensors="pt"
            )
            found = model(**batch).logits.argmax(-1).tolist()
            right += sum(names[i] == str(row["label"]) for i, row in zip(found, part, strict=True))
    return right / len(rows)


def main() -> None:
    """Run all, write the result file and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "structured")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "structured.json")
    options = parser.parse_args()
    folder = options.folder.resolve()

    def job(item: tuple[str, str, list[str]]) -> dict[str, Any]:
        name, recipe, overrides = item
        return trained(folder / name, recipe, overrides, options.steps)

    with ThreadPoolExecutor(options.jobs) as pool:
        dense = list(pool.map(job, [(f"dense-{seed}", "reviews_dense", [f"seed={seed}"]) for seed in SEEDS]))
        rows: list[tuple[str, list[dict[str, Any]]]] = [("dense, fine-tuned", dense)]
        quantized = [int8(folder / f"dense-{seed}-export") for seed in SEEDS]
        if None not in quantized:
            rows.append(("dense, int8", [{"accuracy": a, "parameters": d["parameters"]} for a, d in
                                         zip(quantized, dense, strict=True)]))  # fmt: skip
        jobs, names = [], []
        for method in options.methods:
            for taught in (False, True):
                names.append(f"{method}{' + distillation' if taught else ''}")
                for seed in SEEDS:
                    overrides = [*METHODS[method], f"seed={seed}"]
                    if taught:
                        teacher = folder / f"dense-{seed}-export"
                        overrides += [f"distill.teacher={teacher}", f"distill.weight={WEIGHT}"]
                        overrides += [f"distill.temperature={TEMPERATURE}"]
                    slug = names[-1].replace(", ", "-").replace(" + ", "-").replace(" ", "-")
                    jobs.append((f"{slug}-{seed}", "reviews_narrow", overrides))
        results = list(pool.map(job, jobs))
    rows += [(name, results[i * len(SEEDS) : (i + 1) * len(SEEDS)]) for i, name in enumerate(names)]
    table = []
    for name, values in rows:
        accuracies = [value["accuracy"] for value in values]
        mean = statistics.mean(accuracies)
        table.append({"method": name, "parameters": values[0]["parameters"], "mean": mean, "seeds": accuracies})
    said = {
        "command": shlex.join(
            ["python", "tests/benchmarks/structured.py", f"--steps={options.steps}", "--methods", *options.methods]
        ),
        "device": "CPU, one thread per run",
        "steps": options.steps,
        "distillation": {"weight": WEIGHT, "temperature": TEMPERATURE},
        "table": table,
    }
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(said, indent=1) + "\n")
    print(f"\n{'method':38} {'parameters':>11} {'accuracy':>9} {'spread':>7}")
    for row in table:
        spread = max(row["seeds"]) - min(row["seeds"])
        print(f"{row['method']:38} {row['parameters']:11,} {row['mean']:9.4f} {spread:7.4f}")


if __name__ == "__main__":
    main()
