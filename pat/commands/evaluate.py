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
from pat.common.text import file_size
from pat.run.directory import ExitCode

NAME = 32  # columns that a model's name may fill before it is folded


EXAMPLES = """\
examples:
  pat evaluate runs/dense runs/pruned
  pat evaluate exports/dense exports/pruned data.eval=other.jsonl
  pat evaluate assets/smollm2 pruned recipe=sotu data.max_eval_samples=null --json figures.json
  pat evaluate assets/smollm2 pruned --mix mix.jsonl
  pat evaluate assets/smollm2 pruned --tasks mine --include-path tasks/ --allow-code --output results/

docs/evaluate.md says what each figure is.

"""


def main(arguments: Sequence[str]) -> int:
    """`pat evaluate`."""
    parser = command_parser(
        prog="pat evaluate",
        usage="pat evaluate RUN|EXPORT|FOLDER [...] [recipe=NAME] [key=value ...] [options]\n"
        "       pat evaluate FOLDER [...] --mix FILE|NAME [options]\n"
        "       pat evaluate FOLDER [...] --tasks NAME[,NAME] [--include-path DIR] [options]",
        description="Metrics, sparsity, size and speed of models on held-out data, side by side, and per slice with\n"
        "intervals. Runs and exports know their data and data.max_length; a Hugging Face folder takes those of\n"
        "the first model that knows them. recipe=NAME, or keys such as data.eval=FILE, override them. The first model\n"
        "is the baseline of the others. Of a run, the best checkpoint counts. --mix asks the prompts of a mix\n"
        "instead, --tasks is lm-evaluation-harness.",
        epilog=EXAMPLES + exit_codes(),
    )
    parser.add_argument("given", nargs="+", metavar="FOLDER | key=value", help="models, and other data than their own")
    _models.add_mix_options(parser)
    parser.add_argument("--worst", type=int, default=5, metavar="N", help="failed prompts to show (default: 5)")
    _models.add_statistics_options(parser)
    _models.add_options(parser, arguments)
    of_tasks = parser.add_argument_group("options for lm-evaluation-harness")
    of_tasks.add_argument("--tasks", default="", metavar="NAME,...", help="its tasks, from local data or its cache")
    of_tasks.add_argument("--include-path", type=Path, metavar="DIR", help="your tasks in YAML; needs --allow-code")
    of_tasks.add_argument("--output", type=Path, metavar="DIR", help="keep its own files, DIR/MODEL/results_DATE.json")
    of_tasks.add_argument("--limit", type=int, metavar="N", help="samples of each task")
    of_tasks.add_argument(
        "--apply-chat-template",
        action="store_true",
        default=None,
        help="ask in chats, by the model's own template and the task.template_options that it was trained with",
    )
    of_tasks.add_argument("--num-fewshot", type=int, metavar="N", help="examples before each question")
    options = parser.parse_intermixed_args(arguments)
    _check(options)
    if options.tasks:
        judged = "lm-evaluation-harness judges by itself"
        _models.refuse_ignored(parser, options, ("seed", "confidence", "worst"), judged)
    elif not options.mix:
        _models.refuse_ignored(parser, options, ("batch_size",), _models.SAMPLES_AT_ONCE)
        _models.refuse_ignored(parser, options, ("worst",), "it goes with --mix")
    paths, overrides = _models.folders_and_keys(options.given)
    if not paths:
        raise ValueError("no folder to evaluate: give one or more, such as runs, or what `pat export` writes")
    if options.mix or options.tasks:
        ignored = [*overrides, *(["--config-dir"] if options.config_dir else [])]
        if ignored:
            raise ValueError(
                f"{ignored[0]} would be ignored: {'--mix' if options.mix else '--tasks'} says what is asked"
            )
        return _on_mix(paths, options) if options.mix else _on_tasks(paths, options)
    if any(item.startswith("recipe=") for item in overrides):
        from pat.config.compose import compose

        overrides += ["--config-dir", options.config_dir] if options.config_dir else []
        return compose(overrides, lambda config: _evaluate([config] * len(paths), paths, options))
    if options.config_dir:
        raise ValueError(f"--config-dir {options.config_dir} would be ignored: give recipe=NAME with it")
    from pat.export.origins import configs

    return _evaluate(configs(paths, overrides), paths, options)


def _check(options: argparse.Namespace) -> None:
    """ValueError for options that are out of bounds, or that would be ignored."""
    _models.check_statistics_options(options)
    if options.worst < 0 or (options.limit is not None and options.limit < 1) or (options.num_fewshot or 0) < 0:
        raise ValueError("--worst and --num-fewshot must be 0 or more, --limit 1 or more")
    if options.mix and options.tasks:
        raise ValueError("--mix and --tasks: give only one of them")
    for name in ("include_path", "output", "limit", "num_fewshot", "apply_chat_template"):
        if getattr(options, name) is not None and not options.tasks:
            raise ValueError(f"--{name.replace('_', '-')} would be ignored: it goes with --tasks")
    if options.allow_code and not (options.mix or options.include_path):
        raise ValueError("--allow-code would be ignored: only a mix or a folder of tasks has code")
    if options.include_path is not None:
        if not options.include_path.is_dir():
            raise ValueError(
                f"--include-path {options.include_path}: there is no such folder; give one with YAML tasks"
            )
        if not options.allow_code:
            raise ValueError(
                f"--include-path {options.include_path}: templates and functions of its tasks are code; add "
                "--allow-code if you trust them"
            )
    if options.output is not None:
        files.make(options.output, "--output")
    if options.json:
        files.check_writable(options.json, "--json")


def _on_mix(paths: list[Path], options: argparse.Namespace) -> int:
    from transformers.utils import logging

    from pat.common.parameters import DTYPES
    from pat.evaluation import on_mix, report
    from pat.evaluation.models import opened
    from pat.evaluation.prompts import as_trained
    from pat.prompts import reader

    logging.disable_progress_bar()
    mix = as_trained(reader.read(reader.find(options.mix), options.allow_code), paths)
    device, found = _models.device(options.device), []
    for path in paths:
        with _models.busy(f"asking {path}"), opened(path, None, DTYPES[options.dtype], device) as one:
            found.append(on_mix.evaluate(mix, one, device, options.batch_size, options.confidence, options.seed))
    models = [dataclasses.asdict(item) | _weights(path, options) for item, path in zip(found, paths, strict=True)]
    said = files.finite({"confidence": options.confidence, "models": models})
    _models.say(options, said, report.mix_blocks(found, options.confidence, options.worst))
    return ExitCode.DONE


def _on_tasks(paths: list[Path], options: argparse.Namespace) -> int:
    from transformers.utils import logging

    from pat.common.parameters import DTYPES
    from pat.evaluation import harness
    from pat.evaluation.models import opened

    names = tuple(dict.fromkeys(filter(None, options.tasks.split(","))))
    wanted = harness.Wanted(
        names,
        options.include_path,
        options.limit,
        options.num_fewshot,
        options.batch_size,
        bool(options.apply_chat_template),
    )
    tasks = harness.manager(wanted)
    logging.disable_progress_bar()
    device, found = _models.device(options.device), []
    blocks: list[Any] = []
    for path, name in zip(paths, harness.names(paths), strict=True):
        output = None if options.output is None else options.output / name
        with _models.busy(f"asking {path}"), opened(path, None, DTYPES[options.dtype], device) as one:
            results = harness.evaluate(wanted, tasks, one, device, output)
        blocks += [str(path), harness.table(results)]
        said = {"folder": str(path), "output": str(output or "") or None, "results": results["results"]}
        found.append(said | _weights(path, options))
    _models.say(options, files.finite({"tasks": names, "models": found}), blocks)
    return ExitCode.DONE


def _evaluate(configs: list[Any], paths: list[Path], options: argparse.Namespace) -> int:
    from transformers.utils import logging

    from pat.common.parameters import DTYPES
    from pat.evaluation import report, samples
    from pat.evaluation.folders import evaluate_folder
    from pat.export.origins import differing_data

    for config in configs:
        samples.check_files(config)
    logging.disable_progress_bar()
    device, dtype = _models.device(options.device), DTYPES[options.dtype]
    evaluations = []
    for config, path in zip(configs, paths, strict=True):
        with _models.busy(f"evaluating {path}"):
            evaluations.append(evaluate_folder(config, path, dtype, device, options.confidence, options.seed))
    difference, tokens = differing_data(configs), len({item.tokenizer for item in evaluations}) > 1
    same = difference is None and not tokens
    models = [dataclasses.asdict(item) | _weights(path, options) for item, path in zip(evaluations, paths, strict=True)]
    said = {"recipe": configs[0].run.recipe, "same_data": same, "confidence": options.confidence}
    named = [(item.folder, item.figures) for item in evaluations]
    try:
        _models.write_json(options, files.finite({**said, "models": models}))
    finally:
        _models.show([_table(evaluations, comparable=same)])
        _warn(difference, tokens)
        _models.show(report.per_slice(named, options.confidence, whole=False))
    return ExitCode.DONE


def _warn(difference: str | None, tokens: bool) -> None:
    """Of figures that do not compare: of other data, or by other tokens."""
    if difference:
        print(
            f"pat: each is measured on its own data, so the figures do not compare: {difference}. Give these keys to "
            "measure all on one set",
            file=sys.stderr,
        )
    if tokens:
        print(
            "pat: losses and perplexities are per token, and these models have different tokenizers, so they cannot be "
            "compared. Give --mix, whose checks compare texts",
            file=sys.stderr,
        )


def _weights(path: Path, options: argparse.Namespace) -> dict[str, str]:
    sha256 = _models.weights(path, options)
    return {"weights_sha256": sha256} if sha256 else {}


def _table(evaluations: Sequence[Any], comparable: bool) -> Any:
    """A line for each model; each metric is followed by its difference from the first model's."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    first = evaluations[0].metrics
    names = [name for name, value in first.items() if isinstance(value, float)]
    table = Table(
        box=box.SIMPLE_HEAD,
        caption="sparsity: of what could be pruned. tokens/s: one pass over the data, beside whatever else this "
        "machine was doing",
    )
    longest = max(len(item.folder) for item in evaluations)
    table.add_column("model", overflow="fold", min_width=min(longest, NAME))
    for column in (*names, "sparsity", "parameters", "not zero", "on disk", "tokens/s"):
        table.add_column(column, justify="right", no_wrap=True)
    for item in evaluations:
        cells = []
        for name in names:
            value = item.metrics.get(name)
            compared = item is not evaluations[0] and comparable and value is not None
            cells.append("-" if value is None else f"{value:.4g}" + (f" ({value - first[name]:+z.4g})" * compared))
        table.add_row(
            Text(item.folder),
            *cells,
            "-" if item.sparsity is None else f"{item.sparsity:.2%}",
            f"{item.parameters:,}",
            f"{item.nonzero_parameters:,}",
            file_size(item.bytes),
            f"{item.tokens_per_s:,.0f}",
        )
    return table
