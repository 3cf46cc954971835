"""Compare the demo's dense and pruned model: accuracy, sparsity, size on disk, time.

python launch/demo_table.py DIR     reads DIR/{dense,pruned}/summary.json and DIR/export-{dense,pruned}
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from safetensors import safe_open

MEGA = 1e6


def measure(out: Path, run: str) -> dict[str, Any]:
    """One model's figures, counted in the exported files, not planned."""
    summary = json.loads((out / run / "summary.json").read_text())
    parameters = nonzero = size = compressed = 0
    for file in sorted((out / f"export-{run}").glob("model*.safetensors")):
        size += file.stat().st_size
        compressed += deflated_bytes(file)
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                tensor = tensors.get_tensor(name)
                if tensor.is_floating_point():
                    parameters += tensor.numel()
                    nonzero += int(tensor.count_nonzero())
    return {
        "accuracy": summary["metrics"]["accuracy"],
        "sparsity": summary["sparsity"],
        "parameters": parameters,
        "nonzero": nonzero,
        "bytes": size,
        "compressed_bytes": compressed,
        "train_seconds": summary["train_seconds"],
        "calibration_seconds": summary["calibration_seconds"],
        "steps": summary["step"],
        "ranks": summary["world_size"],
        "device": summary["device"],
    }


def deflated_bytes(file: Path) -> int:
    """Size of the file as zip would store it."""
    packer, total = zlib.compressobj(level=1), 0
    with file.open("rb") as source:
        while chunk := source.read(1 << 22):
            total += len(packer.compress(chunk))
    return total + len(packer.flush())


def table(dense: dict[str, Any], pruned: dict[str, Any]) -> Table:
    """Rows of figures, one column a model."""
    rows = {
        "accuracy on held-out sentences": lambda m: f"{m['accuracy']:.1%}",
        "feed-forward weights removed": lambda m: f"{m['sparsity'] or 0:.2%}",
        "parameters that are not zero": lambda m: f"{m['nonzero'] / MEGA:.1f} M of {m['parameters'] / MEGA:.1f} M",
        "size on disk": lambda m: f"{m['bytes'] / MEGA:.1f} MB",
        "size on disk, deflated": lambda m: f"{m['compressed_bytes'] / MEGA:.1f} MB",
        "training time": lambda m: f"{m['train_seconds']:.0f} s, {m['steps']} steps",
        "time of the cuts": lambda m: f"{m['calibration_seconds']:.0f} s",
    }
    result = Table("", "dense", "pruned", title=f"Film reviews, {dense['ranks']} rank(s), {dense['device']}")
    for label, cell in rows.items():
        result.add_row(label, cell(dense), cell(pruned))
    return result


def main(arguments: list[str]) -> int:
    """Print the table and write DIR/table.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="DIR")
    out = parser.parse_args(arguments).out
    dense, pruned = measure(out, "dense"), measure(out, "pruned")
    (out / "table.json").write_text(json.dumps({"dense": dense, "pruned": pruned}, indent=2) + "\n")
    console = Console()
    console.print(table(dense, pruned))
    console.print(
        "Zeros are stored like any number, so the file is no smaller until it is compressed, and a stock runtime is "
        "no faster: unstructured zeros save storage and transfer. Attention and word embeddings are not pruned."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
