"""Compare two models on the same prompts: is the second worse, on which slices, on which prompts."""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pat.commands import _models
from pat.commands._help import command_parser, exit_codes
from pat.common import files
from pat.common.text import plain
from pat.run.directory import ExitCode

EXAMPLES = """\
examples:
  pat compare exports/dense exports/pruned                      on the data that their runs were evaluated on
  pat compare assets/smollm2 pruned recipe=sotu                 on a recipe's
  pat compare runs/a runs/b --mix mix.jsonl --json figures.json
  pat compare assets/smollm2 pruned --mix chats                 a mix that comes with pat
  pat compare --from-logs a.jsonl b.jsonl --outcome accepted --slices domain --effect 0.02
  pat compare --from-logs a.jsonl b.jsonl --outcome accepted,seconds --effect seconds=0.2

Both models are held at once. docs/compare.md says what each figure is and which test a p-value comes from.

"""


def main(arguments: Sequence[str]) -> int:
    """`pat compare`."""
    parser = command_parser(
        prog="pat compare",
        usage="pat compare A B [recipe=NAME] [key=value ...] [options]\n"
        "       pat compare A B --mix FILE|NAME [options]\n"
        "       pat compare --from-logs A.jsonl B.jsonl --outcome COLUMN,... [options]",
        description="B beside A on the same prompts: differences with intervals over all and per slice, agreement of\n"
        "outputs, KL, the first differing token, and the prompts that were right before and are wrong now.",
        epilog=EXAMPLES + exit_codes(),
    )
    parser.add_argument("given", nargs="*", metavar="FOLDER | key=value", help="two models; keys of pat train")
    _models.add_mix_options(parser)
    _models.add_statistics_options(parser)
    parser.add_argument("--worst", type=int, default=5, metavar="N", help="regressive prompts to show (default: 5)")
    _models.add_options(parser, arguments)
    of_logs = parser.add_argument_group("options for logs")
    of_logs.add_argument(
        "--from-logs", nargs=2, type=Path, metavar=("A", "B"), help="two JSONL logs, each row with an outcome"
    )
    of_logs.add_argument(
        "--outcome", metavar="COLUMN,...", help="columns with true, false, a number, or null: not known yet"
    )
    of_logs.add_argument("--key", metavar="COLUMN", help="rows with the same key in both logs are pairs")
    of_logs.add_argument("--slices", default="", metavar="COLUMN,...", help="columns that divide the traffic")
    of_logs.add_argument(
        "--effect", default="", metavar="D|COLUMN=D,...", help="the difference to find soonest (yes or no: 0.05)"
    )
    of_logs.add_argument(
        "--prompt", metavar="COLUMN", help="column with the prompt, to show regressive prompts of pairs"
    )
    of_logs.add_argument("--output", metavar="COLUMN", help="column with the output, to show it beside them")
    options = parser.parse_intermixed_args(arguments)
    _check(options)
    if options.from_logs:
        _models.refuse_ignored(parser, options, ("seed", "batch_size"), "logs are compared as they are, row by row")
        return _logs(options)
    if not options.mix:
        _models.refuse_ignored(parser, options, ("batch_size",), _models.SAMPLES_AT_ONCE)
    paths, overrides = _models.folders_and_keys(options.given)
    if len(paths) != 2:
        are = "is 1" if len(paths) == 1 else f"are {len(paths)}"
        raise ValueError(f"give two folders, A and B, such as runs or what `pat export` writes: there {are}")
    if options.mix:
        if overrides or options.config_dir:
            raise ValueError(f"{(overrides or ['--config-dir'])[0]} would be ignored: the prompts are --mix's")
        return _on_mix(paths, options)
    if any(item.startswith("recipe=") for item in overrides):
        from pat.config.compose import compose

        overrides += ["--config-dir", options.config_dir] if options.config_dir else []
        return compose(overrides, lambda config: _on_samples(config, paths, options))
    if options.config_dir:
        raise ValueError(f"--config-dir {options.config_dir} would be ignored: give recipe=NAME with it")
    from pat.export.origins import one_config

    return _on_samples(one_config(paths, overrides), paths, options)


def _check(options: argparse.Namespace) -> None:
    """ValueError for options that are out of bounds, or that would be ignored."""
    _models.check_statistics_options(options)
    if options.worst < 0:
        raise ValueError(f"--worst {options.worst}: give 0 or more")
    only_logs = ("outcome", "key", "slices", "effect", "prompt", "output")
    given = [f"--{name}" for name in only_logs if getattr(options, name)]
    if options.from_logs is None and given:
        raise ValueError(f"{given[0]} would be ignored: it goes with --from-logs")
    if options.from_logs is not None and (options.given or options.mix):
        raise ValueError(f"{(options.given or ['--mix'])[0]} would be ignored: --from-logs asks no model")
    of_models = {"device": options.device, "dtype": options.dtype != "fp32", "config-dir": options.config_dir}
    if options.from_logs is not None and (ignored := next((name for name, value in of_models.items() if value), None)):
        raise ValueError(f"--{ignored} would be ignored: --from-logs asks no model")
    if options.from_logs is not None and not options.outcome:
        raise ValueError("--outcome is missing: give the column that says whether an output was good")
    _effects(options.effect)
    if options.allow_code and not options.mix:
        raise ValueError("--allow-code would be ignored: only a mix has checks")
    if options.json:
        files.check_writable(options.json, "--json")


def _on_samples(config: Any, paths: list[Path], options: argparse.Namespace) -> int:
    from pat.compare import on_samples
    from pat.evaluation import samples
    from pat.tasks import base

    samples.check_files(config)
    with _both(paths, base.build(config.task), options) as (a, b, device):
        asked = on_samples.ask(config, a, b, device)
    return _say(asked, (a, b), options)


def _on_mix(paths: list[Path], options: argparse.Namespace) -> int:
    from pat.compare import on_prompts
    from pat.evaluation.prompts import as_trained
    from pat.prompts import reader

    mix = as_trained(reader.read(reader.find(options.mix), options.allow_code), paths)
    with _both(paths, None, options) as (a, b, device):
        asked = on_prompts.ask(mix, a, b, device, options.batch_size)
    return _say(asked, (a, b), options)


@contextlib.contextmanager
def _both(paths: list[Path], task: Any, options: argparse.Namespace) -> Iterator[tuple[Any, Any, str]]:
    """(A, B, the device)."""
    from transformers.utils import logging

    from pat.common.parameters import DTYPES
    from pat.evaluation.models import opened

    logging.disable_progress_bar()
    device, dtype = _models.device(options.device), DTYPES[options.dtype]
    with opened(paths[0], task, dtype, device) as a, opened(paths[1], a.task, dtype, device) as b:
        with _models.busy(f"asking {paths[0]} and {paths[1]}"):
            yield a, b, device


def _say(asked: Any, models: tuple[Any, Any], options: argparse.Namespace) -> int:
    from pat.compare import report, result
    from pat.report import decision

    a, b = models
    found = result.compare(asked, str(a.path), str(b.path), options.confidence, options.seed)
    said = decision.of_comparison(found.plain())
    weights = {"a": _models.weights(a.path, options), "b": _models.weights(b.path, options)}
    blocks = [*report.blocks(found, options.worst), f"{said.word}: {plain(said.sentence)}"]
    _models.say(options, found.plain() | {"weights_sha256": weights, "step": {"a": a.step, "b": b.step}}, blocks)
    return ExitCode.DONE


def _effects(given: str) -> dict[str, float]:
    """`0.02,seconds=0.2` by column; "" is the others'. ValueError."""
    found = dict[str, float]()
    for item in filter(None, given.split(",")):
        column, _, size = item.rpartition("=")
        try:
            found[column] = float(size)
        except ValueError:
            found[column] = 0.0
        if not 0.0 < found[column] < math.inf:
            raise ValueError(f"--effect {item}: give a number above 0, the difference that is worth finding")
    return found


def _logs(options: argparse.Namespace) -> int:
    from pat.compare import on_logs, report
    from pat.report import decision

    outcomes, slices = (tuple(filter(None, each.split(","))) for each in (options.outcome, options.slices))
    columns = on_logs.Columns(outcomes, options.key, slices, options.prompt, options.output)
    if not outcomes:
        raise ValueError(f"--outcome {options.outcome}: give the column that says whether an output was good")
    a, b = options.from_logs
    found = on_logs.compare(a, b, columns, _effects(options.effect), options.confidence)
    said = decision.of_logs(found.plain())
    blocks = [*report.log_blocks(found, options.worst), f"{plain(said.word)}: {plain(said.sentence)}"]
    _models.say(options, found.plain(), blocks)
    return ExitCode.DONE
