"""Compare runs and exports with one another and with dense models, on held-out data."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pat.commands import _models
from pat.commands._help import command_parser, exit_codes
from pat.common import files
from pat.common.files import write_json
from pat.run.directory import ExitCode

MEGA = 1e6
WIDTH = 120  # of the table, at least
NAME = 32  # columns that a model's name may fill before it is folded


def main(arguments: Sequence[str]) -> int:
    """`pat evaluate`."""
    parser = command_parser(
        prog="pat evaluate",
        usage="pat evaluate RUN|EXPORT|FOLDER [...] [recipe=NAME] [key=value ...] [options]",
        description="Metrics, sparsity, size and speed of models on held-out data, side by side. Runs and exports\n"
        "know their data and data.max_length; a Hugging Face folder that does not takes those of the first that\n"
        "does. recipe=NAME, or keys such as data.eval=FILE, say otherwise. The first model is what the others are\n"
        "compared with. Of a run, the best checkpoint counts.",
        epilog="examples:\n  pat evaluate runs/dense runs/pruned\n"
        "  pat evaluate exports/dense exports/pruned data.eval=other.jsonl\n"
        "  pat evaluate assets/smollm2 pruned recipe=sotu data.max_eval_samples=null --json figures.json\n\n"
        + exit_codes(),
    )
    parser.add_argument("given", nargs="+", metavar="FOLDER | key=value", help="models, and other data than their own")
    _models.add_options(parser)
    options = parser.parse_intermixed_args(arguments)
    paths, overrides = _models.folders_and_keys(options.given)
    if not paths:
        raise ValueError("no folder to evaluate: give one or more, such as runs, or what `pat export` writes")
    if options.json:
        files.check_writable(options.json, "--json")
    if any(item.startswith("recipe=") for item in overrides):
        from pat.config.compose import compose

        overrides += ["--config-dir", options.config_dir] if options.config_dir else []
        return compose(overrides, lambda config: _evaluate([config] * len(paths), paths, options))
    if options.config_dir:
        raise ValueError(f"--config-dir {options.config_dir} would be ignored: give recipe=NAME with it")
    from pat.export.origins import configs

    return _evaluate(configs(paths, overrides), paths, options)


def _evaluate(configs: list[Any], paths: list[Path], options: argparse.Namespace) -> int:
    from rich.console import Console
    from transformers.utils import logging

    from pat.common.parameters import DTYPES
    from pat.export.evaluate import evaluate_folder
    from pat.export.origins import differing_data

    logging.disable_progress_bar()
    device = _models.device(options.device)
    console, evaluations = Console(stderr=True), []
    for config, path in zip(configs, paths, strict=True):
        with console.status(f"evaluating {path}"):
            evaluations.append(evaluate_folder(config, path, DTYPES[options.dtype], device))
    difference = differing_data(configs)
    out, table = Console(), _table(evaluations, comparable=difference is None)
    needed = out.measure(table, options=out.options.update(max_width=1000))
    if not out.is_terminal:  # a log has no columns that it must fit
        out.width = max(out.width, WIDTH, needed.maximum)
    out.width = max(out.width, needed.minimum)
    out.print(table)
    if difference:
        print(
            f"pat: each is measured on its own data, so the figures do not compare: {difference}. Give these keys to "
            "measure all on one set",
            file=sys.stderr,
        )
    if options.json:
        models = [dataclasses.asdict(item) for item in evaluations]
        write_json(options.json, {"recipe": configs[0].run.recipe, "same_data": difference is None, "models": models})
    return ExitCode.DONE


def _table(evaluations: Sequence[Any], comparable: bool) -> Any:
    """A line a model; behind a metric, what it is more than the first model's."""
    from rich import box
    from rich.table import Table

    first = evaluations[0].metrics
    names = [name for name, value in first.items() if isinstance(value, float)]
    table = Table(box=box.SIMPLE_HEAD, caption="tokens/s: one pass over the data, at what this machine did besides")
    longest = max(len(item.folder) for item in evaluations)
    table.add_column("model", overflow="fold", min_width=min(longest, NAME))
    for column in (*names, "sparsity", "parameters", "not zero", "on disk", "tokens/s"):
        table.add_column(column, justify="right", no_wrap=True)
    for item in evaluations:
        cells = []
        for name in names:
            value = item.metrics.get(name)
            compared = item is not evaluations[0] and comparable and value is not None
            cells.append("-" if value is None else f"{value:.4g}" + (f" ({value - first[name]:+.4g})" * compared))
        table.add_row(
            item.folder,
            *cells,
            "-" if item.sparsity is None else f"{item.sparsity:.2%}",
            f"{item.parameters:,}",
            f"{item.nonzero_parameters:,}",
            f"{item.bytes / MEGA:.2f} MB",
            f"{item.tokens_per_s:,.0f}",
        )
    return table
