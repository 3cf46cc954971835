"""Watch production: has the traffic drifted, have outputs, which prompts became worse; alerts by exit code."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pat.commands import _models
from pat.commands._help import command_parser, exit_codes
from pat.common import files
from pat.run.directory import ExitCode

if TYPE_CHECKING:
    from pat.monitor.result import Check, Monitored, Replayed
    from pat.monitor.traffic import Part, Reader
    from pat.prompts.mix import Mix

REGISTRY = Path("runs/registry")
FIRST = 0.5  # of a log without an older one
REPLAY = 32  # prompts, and tokens to generate for each

EXAMPLES = """\
examples:
  pat monitor prod.jsonl --against champion --mix mix.jsonl --slices domain
  pat monitor today.jsonl --against exports/half --reference lastweek.jsonl --dense exports/dense --answer label
  pat monitor prod.jsonl --against reviews/champion --mix mix.jsonl --prometheus /var/lib/node_exporter/pat.prom \\
      --html monitor.html

docs/monitor.md says which tests are made, and what an alert means. Pages and --json hold prompts of the log.

"""


def main(arguments: Sequence[str]) -> int:
    """`pat monitor`."""
    parser = command_parser(
        prog="pat monitor",
        usage="pat monitor LOG --against MODEL [--mix FILE|NAME] [--reference LOG] [--dense MODEL] [options]",
        description="Compares the prompts of a JSONL log with a reference mix (or older rows), outputs and latencies\n"
        "with older rows, and answers of the model with those of the dense one. One error level over all tests.",
        epilog=EXAMPLES + exit_codes({ExitCode.ALERT: ExitCode.ALERT.meaning}),
    )
    parser.add_argument("log", type=Path, metavar="LOG", help="production: a JSON mapping a line, oldest first")
    parser.add_argument(
        "--against", required=True, metavar="MODEL",
        help="the model in production: a folder, NAME/VERSION of the registry, or an alias such as champion",
    )  # fmt: skip
    _models.add_mix_options(parser, "a mix to compare the log's prompts with; its checks judge the replay")
    parser.add_argument("--reference", type=Path, metavar="LOG", help="older rows (default: the log's first part)")
    parser.add_argument(
        "--first", type=float, metavar="SHARE", help=f"share of LOG that serves as reference (default: {FIRST})"
    )
    parser.add_argument("--dense", type=Path, metavar="MODEL", help="replay prompts on this folder, too")
    parser.add_argument("--replay", type=int, metavar="N", help=f"prompts to replay (default: {REPLAY})")
    parser.add_argument("--output-tokens", type=int, metavar="N", help=f"most tokens to generate (default: {REPLAY})")
    parser.add_argument("--agreement", type=float, metavar="SHARE", help="alert where fewer replayed outputs agree")
    parser.add_argument("--alpha", type=float, default=0.01, metavar="X", help="rate of false alarms (default: 0.01)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of samples and resamples (default: 0)")
    of_logs = parser.add_argument_group("options for logs")
    of_logs.add_argument("--prompt", default="prompt", metavar="COLUMN", help="texts or messages (default: prompt)")
    of_logs.add_argument("--slices", default="", metavar="COLUMN,...", help="columns that divide the traffic")
    of_logs.add_argument("--long-from", type=int, metavar="WORDS", help="also slice by length: form=long from WORDS on")
    of_logs.add_argument("--answer", metavar="COLUMN", help="right answers, for the replay")
    of_logs.add_argument(
        "--columns", metavar="COLUMN,...",
        help="columns of outputs: numbers, yes or no, texts (default: outcome, latency_ms, output_tokens and output, "
        "where the log has them)",
    )  # fmt: skip
    of_logs.add_argument("--skip-bad", action="store_true", help="leave out lines that cannot be used")
    written = parser.add_argument_group("what is written")
    written.add_argument("--json", type=Path, metavar="FILE", help="the figures")
    written.add_argument("--prometheus", type=Path, metavar="FILE", help="gauges, for node_exporter to collect")
    written.add_argument("--html", type=Path, metavar="FILE", help="a page with the last runs; they are kept beside it")
    written.add_argument("--keep", type=int, default=30, metavar="N", help="runs that the page keeps (default: 30)")
    written.add_argument("--worst", type=int, default=5, metavar="N", help="prompts to show (default: 5)")
    of_models = parser.add_argument_group("options for models")
    of_models.add_argument("--device", help="cpu, cuda, ... (default: the GPU if there is one)")
    _models.add_dtype_option(of_models)
    of_models.add_argument(
        "--dir", type=Path, default=Path("runs/registry"), help="the registry (default: runs/registry)"
    )
    of_models.add_argument("--uri", help="the registry's database or server, as in `pat registry`")
    options = parser.parse_intermixed_args(arguments)
    _check(options)
    before = _history(options)
    found = _monitor(options)
    return _say(found, before, options)


def _check(options: argparse.Namespace) -> None:
    """ValueError for options that are out of bounds, or that would be ignored."""
    from pat.monitor import prometheus

    least_of = {"replay": 1, "output_tokens": 1, "keep": 1, "worst": 0, "batch_size": 1, "seed": 0}
    for name, least in least_of.items():
        if (given := getattr(options, name)) is not None and given < least:
            raise ValueError(f"--{name.replace('_', '-')} {given}: give {least} or more")
    if not 0.0 < options.alpha <= 0.5:
        raise ValueError(f"--alpha {options.alpha}: give a number above 0, to 0.5, as 0.01")
    for name in ("first", "agreement"):
        share = getattr(options, name)
        if share is not None and not 0.0 < share < 1.0:
            raise ValueError(f"--{name} {share}: give a share between 0 and 1")
    for name in ("agreement", "answer", "replay", "output_tokens"):
        if getattr(options, name) is not None and options.dense is None:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} needs a replay, which asks two models: give --dense")
    if options.first is not None and options.reference is not None:
        raise ValueError("--first would be ignored: --reference has the older rows")
    if options.allow_code and not options.mix:
        raise ValueError("--allow-code would be ignored: only a mix has checks")
    if options.dense is not None and not options.dense.is_dir():
        raise ValueError(f"--dense {options.dense}: there is no such folder; give a run or a Hugging Face folder")
    for name in ("json", "prometheus", "html"):
        if getattr(options, name):
            files.check_writable(getattr(options, name), f"--{name}")
    if options.html and files.is_stream(options.html):
        raise ValueError(f"--html {options.html}: give a file, beside which the history of the runs is kept")
    if options.prometheus:
        prometheus.check_installed()


def _history(options: argparse.Namespace) -> list[dict[str, Any]]:
    from pat.monitor import history

    return history.read(history.place(options.html)) if options.html else []


def _monitor(options: argparse.Namespace) -> Monitored:
    from pat.monitor import drift, result, traffic
    from pat.prompts import reader

    mix = reader.read(reader.find(options.mix), options.allow_code) if options.mix else None
    logs = [options.log, *([options.reference] if options.reference else [])]
    for path in logs:
        traffic.count_lines(path)
    given = tuple(filter(None, (options.columns or "").split(",")))
    outputs, notes = (given, list[str]()) if given else traffic.usual_columns(logs)
    columns = traffic.Columns(
        prompt=options.prompt,
        slices=tuple(filter(None, options.slices.split(","))),
        long_from=options.long_from,
        answer=options.answer,
        outputs=outputs,
        may_lack=not given,
    )
    source = traffic.Reader(columns, options.skip_bad, options.seed, notes)
    then, now, asked = _parts(source, mix is not None, options)
    reference = traffic.of_mix(mix, options.long_from) if mix else then
    assert reference is not None
    dimensions = [name.rpartition(".")[2] for name in columns.slices] + (["form"] if options.long_from else [])
    if not dimensions:
        source.notes.append("shares of slices are not compared: --slices names columns of the log, --long-from lengths")
    drift.check_dimensions(reference, dimensions)
    folder, name = _model(options)
    of_prompts, of_replay, replayed = _ask(folder, name, (reference, asked), dimensions, mix, source, options)
    of_outputs = list(drift.of_outputs(then, now, columns.outputs)) if then is not None else []
    if then is not None:
        compared = {check.name for check in of_outputs}
        unknown = [column for column in columns.outputs if column not in compared]
        source.notes += [f"{column} is not compared: one side has no values of it" for column in unknown]
    if not columns.outputs:
        source.notes.append(f"outputs are not compared: the log has none of {', '.join(traffic.USUAL)}; see --columns")
    outputs_then = None
    if then is not None and columns.outputs:
        outputs_then = then.name if now is asked else f"{then.name}; now {now.name}"
    return result.Monitored(
        time_s=time.time(),
        log=str(options.log),
        against=name,
        reference=reference.name,
        then=outputs_then,
        now=asked.name,
        rows=asked.total,
        alpha=options.alpha,
        checks=result.judged([*of_prompts, *of_outputs, *of_replay], options.alpha),
        replayed=replayed,
        notes=source.notes,
    )


def _parts(source: Reader, has_mix: bool, options: argparse.Namespace) -> tuple[Part | None, Part, Part]:
    """(older rows, if anything is compared with them; those that are, and those whose prompts are)."""
    if options.reference:
        now = source.read(options.log)[0]
        return source.read(options.reference)[0], now, now
    if has_mix and not source.columns.outputs:
        if options.first is not None:
            raise ValueError("--first would be ignored: prompts are compared with the mix, and the log has no outputs")
        (now,) = source.read(options.log)
        return None, now, now
    asked = source.read(options.log) if has_mix else []
    then, now = source.read(options.log, FIRST if options.first is None else options.first)
    source.notes = list(dict.fromkeys(source.notes))  # it was read twice
    return then, now, asked[0] if asked else now


def _model(options: argparse.Namespace) -> tuple[Path, str]:
    """(folder, name) of the model in production; one of the registry only after its files have been verified."""
    given = options.against
    if Path(given).is_dir():
        return Path(given), given
    if not options.dir.is_dir():
        raise ValueError(
            f"--against {given}: there is no such folder, and no registry in {options.dir}: give a run, a Hugging Face "
            "folder, or NAME/VERSION of a registry that --dir names"
        )
    from pat.registry import named

    registry = named.opened(options.dir, options.uri)
    version = named.version(registry, given, f"--against {given}")
    return registry.checked(version), f"{version.name}/{version.number}"


def _ask(
    folder: Path, name: str, parts: tuple[Part, Part], dimensions: list[str], mix: Mix | None, source: Reader,
    options: argparse.Namespace,
) -> tuple[list[Check], list[Check], Replayed | None]:  # fmt: skip
    """(checks of the prompts, checks of the replay, the answers)."""
    from transformers.utils import logging

    from pat.common.parameters import DTYPES
    from pat.evaluation.models import opened
    from pat.monitor import ask, drift

    logging.disable_progress_bar()
    device, dtype, tokens = _models.device(options.device), DTYPES[options.dtype], options.output_tokens or REPLAY
    with opened(folder, None, dtype, device) as model, _models.busy(f"asking {name}"):
        reference, now = parts
        places = ask.places(reference.prompts, model), ask.places(now.prompts, model)
        of_prompts = list(drift.of_prompts(reference, now, places, dimensions, options.seed))
        if options.dense is None:
            source.notes.append("no prompt was replayed: --dense names the model to ask beside this one")
            return of_prompts, [], None
        with opened(options.dense, model.task, dtype, device) as dense:
            prompts, long = ask.chosen(now.prompts, options.replay or REPLAY, (dense, model), tokens, mix, options.seed)
            if long:
                source.notes.append(f"{long} prompts to replay leave no room for an answer: left out")
            if not prompts:
                _check_replayed(options)
                return of_prompts, [], None
            replayed, checks = ask.replay(prompts, dense, model, device, options.batch_size, tokens, mix)
    if options.agreement is not None:
        checks.append(ask.agreement(replayed, options.agreement))
    return of_prompts, checks, replayed


def _check_replayed(options: argparse.Namespace) -> None:
    """ValueError where a check was asked for that needs the answers to prompts, of which none can be replayed."""
    for name in ("agreement", "answer"):
        if getattr(options, name) is not None:
            raise ValueError(
                f"--{name} {getattr(options, name)} cannot be checked: no prompt that was drawn leaves room for "
                f"{options.output_tokens or REPLAY} tokens of an answer in both models; give a smaller --output-tokens"
            )


def _say(found: Monitored, before: list[dict[str, Any]], options: argparse.Namespace) -> int:
    from pat.monitor import history, page, prometheus, words
    from pat.report.render import html

    try:
        if options.json:
            files.write_json(options.json, found.plain())
        if options.prometheus:
            files.write_atomic(options.prometheus, prometheus.text(found))
        if options.html:
            runs = history.added(before, found, options.keep)
            history.write(history.place(options.html), runs)
            files.write_atomic(options.html, html(page.page(found, runs, options.worst)))
    finally:
        _models.show(words.blocks(found, options.worst))
    return ExitCode.ALERT if found.alerts else ExitCode.DONE
