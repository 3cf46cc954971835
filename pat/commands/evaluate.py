"""Compare exported models with one another and with dense ones, on a recipe's held-out data."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pat.run import ExitCode, write_json
from pat.usage import command_parser, exit_codes


def main(arguments: Sequence[str]) -> int:
    """`pat evaluate`."""
    parser = command_parser(
        prog="pat evaluate",
        usage="pat evaluate FOLDER [FOLDER ...] recipe=NAME [key=value ...] [options]",
        description="The metrics of Hugging Face folders on the evaluation split of a recipe, side by side. The first\n"
        "folder is what the others are compared with.",
        epilog="examples:\n  pat evaluate dense pruned recipe=reviews\n"
        "  pat evaluate assets/smollm2 pruned recipe=sotu data.max_eval_samples=null --json figures.json\n\n"
        + exit_codes(),
    )
    parser.add_argument("given", nargs="+", metavar="FOLDER | key=value", help="models, and the recipe with its data")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the GPU if there is one)")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="to compute in")
    parser.add_argument("--config-dir", metavar="DIR", help="more groups and recipes: DIR/recipe/NAME.yaml")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, too")
    options = parser.parse_intermixed_args(arguments)
    folders = [Path(item) for item in options.given if "=" not in item]
    overrides = [item for item in options.given if "=" in item]
    overrides += ["--config-dir", options.config_dir] if options.config_dir else []
    if not folders:
        raise ValueError("no folder to evaluate: give one or more, such as `pat export` writes")
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}: give Hugging Face folders, such as `pat export` writes")
    from pat.compose import compose

    return compose(overrides, lambda config: _evaluate(config, folders, options))


def _evaluate(config: Any, folders: list[Path], options: argparse.Namespace) -> int:
    import torch
    from rich.console import Console
    from rich.table import Table
    from transformers.utils import logging

    from pat.evaluate import evaluate_folder
    from pat.models.dtypes import DTYPES

    logging.disable_progress_bar()
    if (options.device or "").startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {options.device}: this torch sees no GPU here; leave it out to use the CPU")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    console, found = Console(stderr=True), []
    for folder in folders:
        with console.status(f"evaluating {folder}"):
            found.append(evaluate_folder(config, folder, DTYPES[options.dtype], device))
    table = Table("model", "parameters", *found[0].metrics)
    for item in found:
        cells = [
            f"{value:.4g}" + ("" if item is found[0] else f" ({value - found[0].metrics[name]:+.4g})")
            for name, value in item.metrics.items()
        ]
        table.add_row(item.folder, f"{item.parameters:,}", *cells)
    Console().print(table)
    if options.json:
        write_json(options.json, {"recipe": config.run.recipe, "models": [dataclasses.asdict(item) for item in found]})
    return ExitCode.DONE
