"""Everything that a report can be made of, small: written by the code that writes it where that takes no model."""

from __future__ import annotations

import copy
import json
import math
import random
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pat.compare import result
from pat.compare.pairs import Asked, Outcome, Pair
from pat.sweeps import results

NASTY = "<script>document.title='owned'</script><img src=x onerror=alert(1)>\u202e\x1b[31m\"'`|"
TOKEN = "hf_" + "ThisIsNoRealTokenAtAll0123456789"
STEPS, LAYERS = 60, 6


def run(folder: Path, pruned: bool = True, done: bool = True, name: str | None = None, evil: str = "") -> Path:
    """A run with a dense, a soft and a hard phase; what models and logs could hold ends in `evil`."""
    folder.mkdir(parents=True)
    pruners = {
        "weights": {
            "params": ["all-linear"],
            "criterion": {"name": "movement"},
            "budget": {"name": "sparsity", "sparsity": 0.7},
            "schedule": {"name": "cubic", "start": 10, "end": 40},
        }
    }
    config = {
        "seed": 0,
        "run": {"name": name or folder.name, "dir": str(folder), "recipe": "reviews"},
        "model": {"path": f"./assets/minilm{evil}", "revision": None},
        "data": {"source": "json", "train": "./assets/reviews/train.jsonl", "hub_token": TOKEN, "max_length": 40},
        "task": {"name": "classification"},
        "train": {"num_steps": STEPS, "global_batch_size": 16},
        "optim": {"lr": 1e-4 if pruned else 2e-4},
        "engine": {"deepspeed": {"url": "https://user:hunter2secret@example.org/x"}},
        "pruners": pruners if pruned else {},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    draw, lines = random.Random(0), list[dict[str, Any]]()
    for step in range(1, STEPS + 1):
        t = min(max((step - 10) / 30, 0.0), 1.0) if pruned else 0.0
        line = {"step": step, "train/loss": 0.35 + 0.4 * math.exp(-step / 15) + 0.1 * t + draw.gauss(0, 0.015)}
        line["pruning/phase"] = "dense" if step <= 10 or not pruned else "soft" if step <= 40 else "hard"
        target = 0.7 * (1 - (1 - t) ** 3)
        line |= {"pruning/sparsity": math.floor(target * 20) / 20 if t < 1 else target, "pruning/target": target}
        lines.append(line)
        if step % 10 == 0:
            accuracy = 0.82 - 0.25 * math.exp(-step / 12) - 0.03 * t
            lines.append({"step": step, "eval/accuracy": accuracy, "eval/loss": 0.42 + 0.05 * t, "eval/seconds": 2.0})
    if pruned:
        lines.append({"step": 10, "dense/accuracy": 0.711, "dense/loss": 0.62, "dense/seconds": 2.0})
    torn = '{"step": 61, "train/lo'
    (folder / "metrics.jsonl").write_text("\n".join([*map(json.dumps, lines), torn]) + "\n")
    starts = [{"time": 1795744053.0, "host": "a", "ranks": 2, "step": 0}]
    warned = {"warnings": [f"all 9 evaluation rows are in the training data, too{evil}"]}
    starts += [{"time": 1795744353.0, "host": f"b{evil}", "ranks": 2, "step": 30, **(warned if pruned else {})}]
    (folder / "starts.jsonl").write_text("\n".join(map(json.dumps, starts)) + "\n")
    (folder / "version.json").write_text(
        json.dumps({"pat": "0.1.0", "from": "https://me:hunter2secret@example.org", "git": "2818d1ef5ca0"})
    )
    if done:
        summary = {
            "run": config["run"]["name"], "recipe": "reviews", "step": STEPS, "phase": "hard" if pruned else "dense",
            "sparsity": 0.7 if pruned else 0.0, "prunable_parameters": 7077888 if pruned else 0,
            "parameters": 22713986, "world_size": 2, "zero_stage": 2, "dtype": "fp32", "device": "cpu",
            "metrics": {"accuracy": 0.79 if pruned else 0.818, "loss": 0.47},
            "dense_metrics": {"accuracy": 0.711, "loss": 0.62} if pruned else None,
            "mask_sha256": "ab" * 32 if pruned else None, "weights_sha256": "cd" * 32,
            "kept_units": {}, "train_seconds": 351.4, "tokens_per_s": 236.8, "peak_memory_bytes": 1013125120,
        }  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "exit.json").write_text(json.dumps({"code": 0, "meaning": "done", "message": "", "time": 1795744462}))
    return folder


def failed(folder: Path, message: str) -> Path:
    """A run that diverged."""
    run(folder, done=False)
    (folder / "exit.json").write_text(json.dumps({"code": 3, "meaning": "diverged", "message": message, "time": 1.8e9}))
    return folder


def variant(folder: Path, run_folder: Path, evil: str = "") -> Path:
    """What an export of it would say, with masks."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    generator, tensors, shapes = np.random.default_rng(0), dict[str, Any](), dict[str, list[int]]()
    kinds = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
             "intermediate.dense", "output.dense")  # fmt: skip
    for layer in range(LAYERS):
        for i, kind in enumerate(kinds):
            keep = generator.random(640) > 0.45 + 0.06 * i + 0.02 * layer
            name = f"bert.encoder.layer.{layer}.{kind}.weight"
            tensors[name], shapes[name] = np.packbits(keep, bitorder="little"), [32, 20]
    metadata = {"format": "1", "bitorder": "little", "mask_sha256": "ab" * 32, "shapes": json.dumps(shapes)}
    save_file(tensors, folder / "masks.safetensors", metadata)
    config = yaml.safe_load((run_folder / "config.yaml").read_text())
    (folder / "config.json").write_text(json.dumps({"architectures": [f"BertForSequenceClassification{evil}"]}))
    export = {
        "dtype": "fp32", "stock": True, "loader": "AutoModelForSequenceClassification.from_pretrained",
        "structures": [], "before": {"parameters": 22713986, "bytes": 90855944},
        "after": {"parameters": 22713986, "bytes": 90855944, "nonzero_parameters": 17759465, "nonzero_bytes": 71037860},
        "prunable_parameters": 7077888, "pruned_parameters": 4954521, "sparsity": 0.7, "mask_sha256": "ab" * 32,
        "weights_sha256": "cd" * 32, "files": {"model.safetensors": {"sha256": "ef" * 32, "bytes": 90870000}},
        "lineage": {"directory": run_folder.name, "step": STEPS, "phase": "hard", "config_sha256": "12" * 32,
                    "metrics": {"accuracy": 0.79, "loss": 0.47}, "dense_metrics": {"accuracy": 0.711, "loss": 0.62},
                    "versions": {"pat": "0.1.0", "git": "2818d1ef5ca0"}},
        "config": {key: value for key, value in config.items() if key != "logger"}, "max_abs_logit_diff": 0.0,
    }  # fmt: skip
    (folder / "export.json").write_text(json.dumps(export))
    return folder


def comparison(path: Path, harm: float = 0.9, evil: str = "", only_slices: bool = False) -> Path:
    """What `pat compare --json` writes: B is wrong on the share `harm` of A's right answers in one slice."""
    content = copy.deepcopy(_compared(harm, evil))
    if only_slices:
        for outcome in content["outcomes"]:
            outcome["overall"]["verdict"] = ""
    path.write_text(json.dumps(content))
    return path


@cache
def _compared(harm: float, evil: str, prompts: int = 36) -> Any:
    draw, pairs = random.Random(1), list[Pair]()
    passed, loss = Outcome("passed", True), Outcome("reference_loss", False)
    texts = ("a short one", "Summarise the report of the committee on the state of the roads in two sentences. " * 4)
    for i in range(prompts):
        domain = ("films", "support", "law")[i % 3]
        a = draw.random() < 0.8
        b = a and not (domain == "law" and draw.random() < harm)
        why = None if b else "the output does not contain 'yes'"
        slices = (f"domain={domain}{evil}", f"form={'short' if i % 2 else 'long'}")
        pairs.append(Pair(f"p{i:03d}", f"{texts[i % 2]} {evil}", f"Yes, of course.{evil}",
                          f"No {'no ' * (i % 40)}{evil}", slices, 1.0, float(a == b), 0.2, 3, why))  # fmt: skip
        passed.add(i, float(a), float(b), 1.0, draw.random())
        loss.add(i, 1.0 + draw.random(), 1.02 + draw.random(), 1.0)
    asked = Asked("mix chats", pairs, [passed, loss], [f"a note {TOKEN} {evil}"])
    return result.compare(asked, "runs/dense", "exports/pruned").plain()


def sweep(folder: Path) -> Path:
    """sweep.json of six runs, one of which diverged."""
    folder.mkdir(parents=True)
    key, records = "pruners.weights.budget.sparsity", list[dict[str, Any]]()
    for i, sparsity in enumerate((0.3, 0.5, 0.6, 0.7, 0.8, 0.9)):
        metrics = {"accuracy": 0.82 - 0.15 * sparsity**3 - 0.02 * (i == 2)}
        summary = {"sparsity": sparsity, "parameters": 22713986, "sparsity_all_parameters": 0.3, "metrics": metrics}
        records.append({
            "name": f"sparsity={sparsity}", "varied": {key: str(sparsity)}, "command": [], "dir": "x",
            "code": 3 if i == 5 else 0, "meaning": "diverged" if i == 5 else "done", "seconds": 100.0 * (i + 1),
            "message": "the loss is inf" if i == 5 else "", "summary": None if i == 5 else summary, "latency_ms": None,
        })  # fmt: skip
    y = results.Axis("accuracy", "accuracy", True)
    command = ["pat", "sweep", "recipe=reviews", f"{key}=0.3,0.5", "--token", TOKEN]
    results.write(folder, command, records, results.X_AXES["sparsity"], y)
    return folder


def gate(path: Path, passed: bool = False) -> Path:
    """What `pat gate --json` writes."""
    checks = [
        {"name": "accuracy.drop", "limit": 0.01, "rule": "at most 0.01 below the baseline", "measured": 0.79,
         "baseline": 0.818, "quantity": -0.028, "interval": [-0.045, -0.01], "n": 120,
         "passed": passed},
        {"name": "latency_p95.ratio", "limit": 0.8, "measured": 0.0088, "baseline": 0.0124, "quantity": 0.71,
         "interval": [0.69, 0.81], "certain": False,
         "passed": True},
        {"name": "slices.min", "limit": 0.7, "measured": 0.74, "baseline": None, "interval": None, "passed": True},
    ]  # fmt: skip
    variant = {"folder": "exports/pruned", "weights_sha256": "cd" * 32}
    command = ["pat", "gate", "exports/a pruned one", "--against", "exports/dense"]
    content = {"passed": passed, "checks": checks, "variant": variant, "command": command, "directory": "/srv/gates"}
    path.write_text(json.dumps(content))
    return path


def profile(path: Path) -> Path:
    """What `pat profile --json` writes."""
    models = [
        {
            "folder": "runs/dense",
            "latency_p50": 0.0101,
            "latency_p95": 0.0124,
            "tokens_per_s": 5100,
            "bytes_on_disk": 90855944,
            "ratio": {},
            "throughput": [],
        },
        {
            "folder": "exports/pruned",
            "latency_p50": 0.0074,
            "latency_p95": 0.0088,
            "tokens_per_s": 7050,
            "bytes_on_disk": 71037860,
            "throughput": [{"batch_size": 1}],
            "ratio": {"latency_p95": {"value": 0.71, "low": 0.69, "high": 0.74}},
        },
    ]
    path.write_text(json.dumps({"models": models, "device": "cpu"}))
    return path


def evaluation(path: Path, evil: str = "") -> Path:
    """What `pat evaluate --json` writes of a dense and a pruned model."""

    def figures(accuracy: float, law: float) -> list[dict[str, Any]]:
        def estimate(n: int, value: float) -> dict[str, Any]:
            return {"n": n, "value": value, "low": value - 0.05, "high": value + 0.05}

        slices = {f"domain=law.v2{evil}": estimate(40, law), "domain=film": estimate(60, 0.9)}
        of_all = estimate(100, accuracy)
        return [{"name": "accuracy", "higher_is_better": True, "overall": of_all, "slices": slices}]

    models = [
        {"folder": f"dense{evil}", "metrics": {"accuracy": 0.9}, "figures": figures(0.9, 0.88)},
        {"folder": f"pruned{evil}", "metrics": {"accuracy": 0.8}, "figures": figures(0.8, 0.515)},
    ]
    path.write_text(json.dumps({"recipe": "r", "same_data": True, "confidence": 0.9, "models": models}))
    return path


def everything(folder: Path, evil: str = "") -> list[Path]:
    """One of each that belongs to one story: a dense run, a pruned one, its export, and what was measured."""
    dense, pruned = run(folder / "dense", pruned=False, evil=evil), run(folder / "pruned", evil=evil)
    return [
        dense, pruned, variant(folder / "exported", pruned, evil), comparison(folder / "compare.json", evil=evil),
        gate(folder / "gate.json"), profile(folder / "profile.json"), evaluation(folder / "evaluation.json", evil),
    ]  # fmt: skip
