"""Whether a variant is inside its envelope: one check per limit, for CI."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pat.commands import _models
from pat.commands._help import command_parser, exit_codes
from pat.common import files
from pat.run.directory import ExitCode

PREFIX = "envelope."

EXAMPLES = """\
examples:
  pat gate exports/pruned --against exports/dense --envelope gate.yaml
  pat gate exports/pruned --against assets/dense envelope.accuracy.drop=0.01 envelope.sparsity.min=0.5
  pat gate pruned --against dense --envelope gate.yaml --mix mix.jsonl --profile profile.json --junit gate.xml
  pat gate pruned --against dense --envelope gate.yaml recipe=sotu --markdown "$GITHUB_STEP_SUMMARY"

gate.yaml:
  accuracy: {drop: 0.01}          # at most 0.01 below the baseline's
  perplexity: {ratio: 1.05}       # at most 1.05 times the baseline's
  slices: {drop: 0.03, least: 30} # of every slice with 30 samples or more
  latency_p95: {ratio: 0.7}       # from --profile
  sparsity: {min: 0.5}

docs/gate.md has every figure and bound, and the shape of a profile.

"""


def main(arguments: Sequence[str]) -> int:
    """`pat gate`."""
    parser = command_parser(
        prog="pat gate",
        usage="pat gate VARIANT [--against FOLDER] [--envelope FILE] [envelope.FIGURE.BOUND=NUMBER ...] [recipe=NAME]\n"
        "                [key=value ...] [options]",
        description="Measures what the envelope limits, on the variant's own evaluation data, a recipe's, a mix or a\n"
        "profile, and judges every limit. A limit passes when the figure is inside; with --confident, when its\n"
        "whole interval is. A limit that nothing measures is an error. Of a run, the best checkpoint counts.",
        epilog=EXAMPLES + exit_codes({ExitCode.OUTSIDE_ENVELOPE: ExitCode.OUTSIDE_ENVELOPE.meaning}),
    )
    parser.add_argument("given", nargs="+", metavar="FOLDER | key=value", help="the variant; limits; other data")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="the baseline, such as the dense model")
    parser.add_argument("--envelope", type=Path, metavar="FILE", help="limits in YAML; keys envelope.* come on top")
    _models.add_mix_options(parser)
    parser.add_argument(
        "--profile", type=Path, metavar="FILE", help="latencies and memory: what `pat profile --json FILE` wrote"
    )
    parser.add_argument("--confident", action="store_true", help="demand that whole intervals are inside")
    _models.add_statistics_options(parser)
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write the checks as JUnit XML")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write a summary for people")
    _models.add_options(parser, arguments)
    options = parser.parse_intermixed_args(arguments)
    _models.check_statistics_options(options)
    if not options.mix:
        _models.refuse_ignored(parser, options, ("batch_size",), _models.SAMPLES_AT_ONCE)
    for name in ("json", "junit", "markdown"):
        if getattr(options, name):
            files.check_writable(getattr(options, name), f"--{name}")
    paths, keys = _models.folders_and_keys(options.given)
    if len(paths) != 1:
        raise ValueError(f"give the folder of one variant, and its baseline by --against: there are {len(paths)}")
    if options.against is not None and not options.against.is_dir():
        raise ValueError(f"--against {options.against}: there is no such folder; give a run or a Hugging Face folder")
    limits = [key.lstrip("+") for key in keys if key.lstrip("+").startswith((PREFIX, f"{PREFIX[:-1]}="))]
    rest = [key for key in keys if key.lstrip("+") not in limits]
    return _gate(paths[0], rest, _envelope(limits, options), options)


def _envelope(limits: Sequence[str], options: argparse.Namespace) -> Any:
    """The limits of the file and of the keys. Raises ValueError."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from pat.envelope import spec

    content = {} if options.envelope is None else spec.read(options.envelope)
    try:
        given = OmegaConf.create()
        for one in OverridesParser.create().parse_overrides(list(limits)):
            OmegaConf.update(given, one.key_or_group, one.value())
        made: Any = OmegaConf.to_container(given)
    except (OmegaConfBaseException, OverrideParseException) as error:
        raise ValueError(f"the keys {PREFIX}*: {str(error).splitlines()[0]}") from None
    if not isinstance(made.get("envelope", {}), dict):
        raise ValueError(
            f"envelope={made['envelope']} is no limit: give some, as envelope.accuracy.drop=0.01, or --envelope FILE"
        )
    try:
        return spec.parse(spec.merged(content, made.get("envelope", {})))
    except ValueError as error:
        place = "" if options.envelope is None else f"{options.envelope}: "
        raise ValueError(f"{place}{error} (docs/gate.md)") from None


def _gate(variant: Path, keys: list[str], envelope: Any, options: argparse.Namespace) -> int:
    from pat.envelope.figures import MIX, PROFILE, SAMPLES, figures
    from pat.evaluation.prompts import as_trained
    from pat.gate import profile
    from pat.gate.measure import check_measured, needs_mix, needs_samples
    from pat.prompts import reader

    with_samples = needs_samples(envelope, options.mix is not None)
    ignored = [*keys, *(["--config-dir"] if options.config_dir else [])]
    if not with_samples and ignored:
        raise ValueError(f"{ignored[0]} would be ignored: no limit needs a recipe's samples")
    if options.mix and not needs_mix(envelope):
        raise ValueError("--mix would be ignored: limit passed, reference_loss, calibration_error or slices")
    if options.profile and not any(PROFILE in figures()[name].sources for name in envelope.limits):
        raise ValueError("--profile would be ignored: no limit is on latency, throughput or memory")
    if options.against and not envelope.relative():
        raise ValueError("--against would be ignored: no limit is against a baseline (drop, rise, ratio)")
    given = {SAMPLES: with_samples, MIX: bool(options.mix), PROFILE: bool(options.profile)}
    check_measured(envelope, [name for name, there in given.items() if there], bool(options.against))
    paths = [variant, *([options.against] if options.against else [])]
    mix = as_trained(reader.read(reader.find(options.mix), options.allow_code), paths) if options.mix else None
    said = profile.read(options.profile) if options.profile else None
    if said is not None and not said.says_weights:
        print(
            f"pat: {options.profile} does not say whose weights it is of (weights_sha256), so it counts by the names "
            "of its folders; what `pat profile --json` writes now says it",
            file=sys.stderr,
        )
    if not with_samples:
        return _judge(variant, None, mix, said, envelope, options)
    if any(key.startswith("recipe=") for key in keys):
        from pat.config.compose import compose

        keys = keys + (["--config-dir", options.config_dir] if options.config_dir else [])
        return compose(keys, lambda config: _judge(variant, config, mix, said, envelope, options))
    if options.config_dir:
        raise ValueError(f"--config-dir {options.config_dir} would be ignored: give recipe=NAME with it")
    from pat.export.origins import one_config

    return _judge(variant, one_config(paths, keys), mix, said, envelope, options)


def _judge(variant: Path, config: Any, mix: Any, profile: Any, envelope: Any, options: argparse.Namespace) -> int:
    from transformers.utils import logging

    from pat.common.parameters import DTYPES
    from pat.gate import write
    from pat.gate.measure import Asked, ask
    from pat.gate.verdict import Gate, Verdict, said_of

    logging.disable_progress_bar()
    started = time.monotonic()
    asked = Asked(config, mix, DTYPES[options.dtype], _models.device(options.device), options.batch_size)
    gate = Gate(envelope, profile, options.confidence, options.confident, options.seed)
    with _models.busy(f"measuring {variant}"):
        facts = ask(variant, asked)
    baseline = None
    if options.against is not None:
        with _models.busy(f"measuring {options.against}"):
            baseline = ask(options.against, asked, facts.task)
    with _models.busy("judging"):
        checks = gate.checks(facts, baseline)
    verdict = Verdict(
        passed=all(check.passed for check in checks),
        checks=checks,
        variant=said_of(facts),
        baseline=None if baseline is None else said_of(baseline),
        envelope=envelope.said(),
        data=[measured.data for measured in facts.sources.values()] + ([str(profile.path)] if profile else []),
        confidence=options.confidence,
        confident=options.confident,
        seconds=time.monotonic() - started,
        left_out=gate.left_out(facts),
    )
    failed = [write.sentence(check) for check in checks if not check.passed]
    ending = "inside its envelope" if verdict.passed else "outside its envelope:\n  " + "\n  ".join(failed)
    try:
        _models.write_json(options, verdict.plain())
        if options.junit:
            files.write_atomic(options.junit, write.junit(verdict))
        if options.markdown:
            files.write_summary(options.markdown, write.markdown(verdict))
    finally:
        _models.show([write.table(verdict), f"{variant} is {ending}"])
    return ExitCode.DONE if verdict.passed else ExitCode.OUTSIDE_ENVELOPE
