"""Tokenise a run's data before it starts, and look at it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pat.commands._help import command_parser, exit_codes
from pat.common import files
from pat.run.directory import ExitCode

EXAMPLES = """\
examples:
  pat data prepare recipe=llama3_8b_chat data.source=json data.train=chats.jsonl data.eval=null
  pat data prepare recipe=reviews --json figures.json
  pat data show recipe=reviews --n 5 --split eval
  pat data show recipe=decoder model.path=DIR data.source=json data.train=texts.jsonl --split calibration
  pat data show recipe=llama3_8b_chat data.source=json data.train=chats.jsonl --index 12 --tokens 2000

`pat train` with the same keys finds what was prepared, wherever it runs with the same data.cache_dir (or PAT_CACHE):
the cache is found by the content of the files, the tokenizer and the keys that matter.

"""


def main(arguments: Sequence[str]) -> int:
    """`pat data`."""
    parser = command_parser(
        prog="pat data",
        usage="pat data prepare|show recipe=NAME [key=value ...] [options]",
        description="prepare  tokenise the data of a run into the cache that training reads, and sum it up\n"
        "show     samples as text: what the loss is on in green (in «» where there are no colours), and labels",
        epilog=EXAMPLES + exit_codes(),
    )
    parser.add_argument("what", choices=("prepare", "show"), help="what to do")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the run, as in `pat train`")
    parser.add_argument("--config-dir", metavar="DIR", help="more groups and recipes: DIR/recipe/NAME.yaml")
    parser.add_argument("--json", type=Path, metavar="FILE", help="prepare: write the figures, too")
    parser.add_argument("--n", type=int, default=3, help="show: how many samples, from all over the data (default: 3)")
    parser.add_argument(
        "--split",
        choices=("train", "eval", "calibration"),
        default="train",
        help="show: which split (default: train); calibration: the first on which methods are calibrated, in order",
    )
    parser.add_argument("--index", type=int, metavar="I", help="show: only this sample")
    parser.add_argument(
        "--tokens", type=int, default=400, metavar="N", help="show: tokens of each document (default: 400)"
    )
    options = parser.parse_intermixed_args(arguments)
    if options.n < 1 or options.tokens < 1:
        raise ValueError(f"--n {options.n} --tokens {options.tokens}: give 1 or more of both")
    if options.json and options.what != "prepare":
        raise ValueError("--json would be ignored: it goes with `pat data prepare`")
    if options.json:
        files.check_writable(options.json, "--json")
    from pat.config.compose import compose

    overrides = [*options.overrides, *(["--config-dir", options.config_dir] if options.config_dir else [])]
    left_open: set[str] = set()

    def work(config: Any) -> int:
        return _prepare(config, options, not left_open) if options.what == "prepare" else _show(config, options)

    return compose(overrides, work, steps_are_made=False, left_open=left_open)


def _prepare(config: Any, options: argparse.Namespace, steps_are_known: bool) -> int:
    from rich.console import Console

    from pat.common.files import write_json
    from pat.data.inspect import summarise, table, where
    from pat.training.preflight import fitting_data

    summary = summarise(fitting_data(config), config, steps_are_known)
    if options.json:
        write_json(options.json, summary)
    Console().print(table(summary))
    print(where(summary))
    return ExitCode.DONE


def _show(config: Any, options: argparse.Namespace) -> int:
    from rich.console import Console

    from pat.data.inspect import calibrating, chosen, sample_text
    from pat.models.tokenizers import build_tokenizer
    from pat.training.preflight import fitting_data

    prepared, tokenizer, console = fitting_data(config), build_tokenizer(config.model), Console(highlight=False)
    split = options.split
    if split == "calibration":
        split, indices = calibrating(prepared, config, options.n, options.index)
    else:
        indices = chosen(len(getattr(prepared, split)), options.n, options.index)
    for index in indices:
        text = sample_text(prepared, split, index, tokenizer, options.tokens, console.is_terminal)
        console.print(text, soft_wrap=True)
        console.print()
    return ExitCode.DONE
