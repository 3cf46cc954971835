"""Writes the README's figures from the files in results/: python docs/build/figures.py

A row of the table names what is compared and where its figures are in frontier.json; what is not there is "not
measured". What the demo prints at its end is made of demo.json (DIR/table.json of launch/demo.sh), and the cost of a
step is that of step.json. demo_prune.json is what `pat prune` makes of the demo's dense model.
"""

from __future__ import annotations

import importlib.util
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- figures -->\n", "<!-- end of figures -->"
DEMO, END_OF_DEMO = "<!-- demo -->\n```text\n", "```\n<!-- end of demo -->"
WIDTH = 76  # of the demo's table
NOT_MEASURED = "not measured"
HEAD = ["model, data", "removed", "steps", "dense", "pruned", "the best of other packages"]
MODELS = {"addresses": "Llama of 135 M, presidents' addresses", "reviews": "MiniLM of 23 M, film reviews"}
OTHERS = {
    "llmcompressor-sparsegpt": "llmcompressor's SparseGPT",
    "llmcompressor-wanda": "llmcompressor's Wanda",
    "modelopt-sparsegpt": "modelopt's SparseGPT",
    "torch-pruning-magnitude": "torch-pruning, magnitude",
    "torch-pruning-taylor": "torch-pruning, Taylor",
    "torchao-pat": "torchao's PAT",
}
# (data, steps, target, our method, what goes)
ROWS = (
    ("addresses", 0, "50", "alps", "half of the weights (`pat prune`)"),
    ("addresses", 80, "50", "alps", "half of the weights"),
    ("addresses", 80, "2:4", "alps", "two of every four weights (2:4)"),
    ("addresses", 80, "ffn=0.5", "obs", "half of the neurons"),
    ("reviews", 120, "80", "alps", "80 % of the weights"),
    ("reviews", 120, "ffn=0.5", "obs", "half of the neurons"),
)


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The table, a line a row."""
    rows = [HEAD, ["---"] * len(HEAD)]
    for data, steps, target, method, goes in ROWS:
        dense = _figure(results, data, steps, "dense", "dense")
        pruned = _figure(results, data, steps, target, method)
        bold = pruned if pruned == NOT_MEASURED else f"**{pruned}**"
        rows.append([MODELS[data], goes, str(steps), dense, bold, _best(results, data, steps, target)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _of(results: Mapping[str, Mapping[str, Any]], *row: Any) -> list[Mapping[str, Any]]:
    """The seeds of a row that have a figure."""
    name = "-".join(map(str, row))
    return [r for key, r in results.items() if key.rpartition("-")[0] == name and r["value"] is not None]


def _figure(results: Mapping[str, Mapping[str, Any]], *row: Any) -> str:
    seeds = _of(results, *row)
    return _shown(seeds) if seeds else NOT_MEASURED


def _shown(seeds: Sequence[Mapping[str, Any]]) -> str:
    values, metric = [r["value"] for r in seeds], seeds[0]["metric"]
    said = f"{mean(values):.1%}".replace("%", " %") if metric == "accuracy" else f"{metric} {mean(values):.1f}"
    return said + (f" ({len(values)} seeds)" if len(values) > 1 else "")


def _others(results: Mapping[str, Mapping[str, Any]], *row: Any) -> Iterator[tuple[float, str]]:
    for method, name in OTHERS.items():
        if seeds := _of(results, *row, method):
            value = mean(r["value"] for r in seeds)
            yield (-value if seeds[0]["metric"] == "accuracy" else value), f"{_shown(seeds)}, {name}"


def _best(results: Mapping[str, Mapping[str, Any]], *row: Any) -> str:
    return min(_others(results, *row), default=(0.0, NOT_MEASURED))[1]


def into(page: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """The page with today's table between its marks."""
    return re.sub(f"{BEGIN}.*?{END}", lambda _: BEGIN + table(results) + END, page, flags=re.DOTALL)


def with_demo(page: str, models: Mapping[str, Mapping[str, Any]]) -> str:
    """The page with what the demo prints, between its marks."""
    spec = importlib.util.spec_from_file_location("demo_table", ROOT / "launch" / "demo_table.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    Console(file=(said := io.StringIO()), width=WIDTH).print(module.table(**models))
    lines = "".join(f"{line.rstrip()}\n" for line in said.getvalue().splitlines())
    page = re.sub(f"{DEMO}.*?{END_OF_DEMO}", lambda _: DEMO + lines + END_OF_DEMO, page, flags=re.DOTALL)
    return with_time(page, models)


def with_time(page: str, models: Mapping[str, Mapping[str, Any]]) -> str:
    """The page with the minutes that the demo trains and cuts."""
    seconds = sum(model["train_seconds"] + model["calibration_seconds"] for model in models.values())
    return re.sub(r"\d+ minutes of training and cuts", f"{seconds / 60:.0f} minutes of training and cuts", page)


def with_step(page: str, step: Mapping[str, Any]) -> str:
    """The page with what a step costs, over one without pruning."""
    soft, hard = step["soft"], step["hard"]
    said = f"{soft['step_ratio']:.2f} (masks still move) and [{hard['step_ratio']:.2f} (masks are final)]"
    page = re.sub(r"[\d.]+ \(masks still move\) and \[[\d.]+ \(masks are final\)\]", said, page)
    paired = f"{soft['step_ratio_paired']:.2f} and {hard['step_ratio_paired']:.2f} in paired steps"
    return re.sub(r"[\d.]+ and [\d.]+ in paired steps", paired, page)


def with_prune(page: str, prune: Mapping[str, Any]) -> str:
    """The page with what the demo's dense model has after `pat prune`."""
    return re.sub(r"has [\d.]+ % \(\[results\]", f"has {100 * prune['accuracy']:.1f} % ([results]", page)


def with_speed(page: str, export: Mapping[str, Any]) -> str:
    """The page with how much faster a narrow export reads a prompt."""
    said = f"prompt of {export['tokens']} tokens {export['speedup']:.2f} times as fast"
    return re.sub(r"prompt of \d+ tokens [\d.]+ times as fast", said, page)


def with_sizes(page: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """The page with the parameters that are left of both models."""
    for row, what, model in (
        ("addresses-80-50-alps-0", "half of them", "the Llama's"),
        ("reviews-120-80-alps-0", "80 %", "MiniLM's"),
    ):
        if row in results:
            left, whole = (round(results[row][key] / 1e6) for key in ("nonzero_parameters", "parameters"))
            old = rf"(emoving {what} leaves\s)\d+ M of {model} \d+ M"
            page = re.sub(old, rf"\g<1>{left} M of {model} {whole} M", page)
    return page


def result(name: str) -> Any:
    """A file of results/."""
    return json.loads((ROOT / "results" / f"{name}.json").read_text())


def written(page: str) -> str:
    """The page with today's figures."""
    rows = result("frontier")["rows"]
    page = with_speed(with_sizes(with_demo(into(page, rows), result("demo")), rows), result("export"))
    return with_prune(with_step(page, result("step")), result("demo_prune"))


def main() -> None:
    """Replace the figures in the README."""
    readme = ROOT / "README.md"
    readme.write_text(written(readme.read_text()))


if __name__ == "__main__":
    main()
