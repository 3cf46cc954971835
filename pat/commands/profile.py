"""How fast models are and what they cost to serve, measured in turn so that ratios hold on a noisy machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pat.commands import _models
from pat.commands._help import command_parser, exit_codes
from pat.common import files
from pat.run.directory import ExitCode

WIDTH = 120  # of the tables, at least

EXAMPLES = """\
examples:
  pat profile exports/dense exports/pruned --mix mix.jsonl --price-per-hour 2.5
  pat profile assets/smollm2 pruned --mix chats --json profile.json
  pat profile dense pruned --lengths 128:32,512:64 --batch-sizes 1,4,16 --backend eager,compile
  pat profile classifier pruned --lengths 128 --backend onnxruntime,openvino --threads 4

The first model on the first backend is what the others are compared with. docs/profile.md says what each figure is.

"""


def main(arguments: Sequence[str]) -> int:
    """`pat profile`."""
    parser = command_parser(
        prog="pat profile",
        usage="pat profile MODEL [MODEL ...] [--mix FILE|NAME] [options]",
        description="Latency (p50, p95, p99), time to first token, throughput, memory, FLOPs, load time and cost of\n"
        "models, and their ratio to the first one with an interval. Models are runs (the best checkpoint), exports,\n"
        "or Hugging Face folders; each is loaded in a process of its own, and they are asked in turn.",
        epilog=EXAMPLES + exit_codes(),
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="folders; the first is the baseline")
    parser.add_argument("--mix", metavar="FILE|NAME", help="prompts of the traffic (pat prompts --help)")
    parser.add_argument("--lengths", metavar="P:O,...", help="prompt and output tokens instead (default: 128:32)")
    parser.add_argument(
        "--batch-sizes", default="1,8", metavar="N,...", help="batch sizes for throughput (default: 1,8)"
    )
    parser.add_argument("--backend", default="eager", metavar="NAME,...", help="eager (default), compile, onnxruntime, "
                        "openvino, vllm")  # fmt: skip
    parser.add_argument(
        "--requests",
        type=int,
        default=20,
        metavar="N",
        help="single requests, 6 or more, each asked twice (default: 20)",
    )
    parser.add_argument("--warm-up", type=int, default=1, metavar="N", help="rounds that do not count (default: 1)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: as torch chooses)")
    parser.add_argument(
        "--price-per-hour", type=float, metavar="X", help="price of the machine, for the cost per million tokens"
    )
    parser.add_argument(
        "--confidence", type=float, default=0.95, metavar="X", help="confidence of intervals (default: 0.95)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of what is drawn (default: 0)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the GPU if there is one)")
    _models.add_dtype_option(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, too")
    parser.add_argument("--table", type=Path, metavar="FILE", help="also time the first model's layers at every width, "
                        "for pruners.NAME.budget.name=latency")  # fmt: skip
    _models.keep_words(parser, arguments)
    options = parser.parse_args(arguments)
    _check(options)
    return _profile(options)


def _check(options: argparse.Namespace) -> None:
    """ValueError for options that are out of bounds, or that would be ignored."""
    if options.mix and options.lengths:
        raise ValueError("--mix and --lengths are given: the lengths come from one of them, so leave the other out")
    if not 0.5 <= options.confidence < 1.0:
        raise ValueError(f"--confidence {options.confidence}: give a number from 0.5 to below 1, as 0.95")
    for name, least in (("requests", 6), ("warm_up", 0), ("threads", 1), ("seed", 0)):
        given = getattr(options, name)
        if given is not None and given < least:
            raise ValueError(f"--{name.replace('_', '-')} {given}: give {least} or more")
    _models.check_price(options.price_per_hour)
    for name in ("json", "table"):
        if getattr(options, name):
            files.check_writable(getattr(options, name), f"--{name}")


def _profile(options: argparse.Namespace) -> int:
    import torch
    from rich.console import Console
    from transformers.utils import logging

    from pat.profiling import plan, report, vllm
    from pat.profiling.backends import check_installed
    from pat.profiling.run import Asked, run
    from pat.prompts import reader
    from pat.run.provenance import versions

    paths, keys = _models.folders_and_keys(options.models)
    if keys:
        raise ValueError(f"{keys[0]} is not a folder: give runs or Hugging Face folders")
    backends = tuple(dict.fromkeys(options.backend.split(",")))
    for name in backends:
        check_installed(name)
        if name == "vllm":
            vllm.check_installed()
    asked = Asked(
        backends=backends,
        device=_models.device(options.device),
        dtype=options.dtype,
        requests=options.requests,
        batch_sizes=tuple(plan.parse_batch_sizes(options.batch_sizes)),
        lengths=tuple(plan.parse_lengths(options.lengths)) if options.lengths else None,
        warm_up=options.warm_up,
        threads=options.threads or torch.get_num_threads(),
        price_per_hour=options.price_per_hour,
        confidence=options.confidence,
        seed=options.seed,
    )
    mix = reader.read(reader.find(options.mix), checked=False) if options.mix else None
    logging.disable_progress_bar()
    result = run(paths, mix, asked, table=options.table is not None)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:  # a log has no width to fit
        console.width = max(console.width, WIDTH)
    try:
        if options.table:
            files.write_json(options.table, result.table)
        _models.write_json(options, _plain(result, options, versions()))
    finally:
        for block in report.blocks(result.profiles, result.device, options.dtype, result.requests, options.confidence):
            console.print(block)
    if options.table:
        keys = f"pruners.NAME.budget.name=latency pruners.NAME.budget.table={options.table}"
        console.print(f"latency table of {paths[0]}: {options.table}; pat train ... {keys}")
    return ExitCode.DONE


def _plain(result: Any, options: argparse.Namespace, versions: dict[str, str]) -> dict[str, Any]:
    return {
        "device": result.device,
        "dtype": options.dtype,
        "mix": options.mix,
        "requests": result.requests,
        "confidence": options.confidence,
        "versions": versions,
        "models": [one.plain() for one in result.profiles],
    }
