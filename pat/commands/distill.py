"""Run a teacher once over the training data, so that it need not run beside the model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from pat.commands._help import command_parser, exit_codes
from pat.commands._overrides import under
from pat.run.directory import ExitCode

DRAWS = 50  # as in the paper: some dozen distinct tokens

EXAMPLES = """\
examples:
  pat distill cache recipe=decoder ... distill.teacher=/models/llama distill.cache=answers
  pat train recipe=decoder ... distill.cache=answers distill.weight=0.5

For every token that training predicts, --draws tokens are drawn from the teacher's distribution and stored with how
often each came. The gradient of the loss is then right on average (Sparse Logit Sampling, arXiv:2503.16870), and no
teacher takes memory or time in training. The same command goes on where it was stopped. A cache fits runs of the same
data.*, task, tokenizer and distill.temperature, on any number of ranks, with any order and number of steps.

"""


def main(arguments: Sequence[str]) -> int:
    """`pat distill`."""
    parser = command_parser(
        prog="pat distill",
        usage="pat distill cache recipe=NAME distill.teacher=MODEL distill.cache=DIR [key=value ...] [options]",
        description="cache  draw answers from the teacher of a language model's run, on one device, into DIR",
        epilog=EXAMPLES + exit_codes(),
    )
    parser.add_argument("what", choices=("cache",), help="what to do")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the run, as in `pat train`")
    parser.add_argument(
        "--draws", type=int, default=DRAWS, metavar="K", help=f"draws for each token (default: {DRAWS})"
    )
    parser.add_argument("--config-dir", metavar="DIR", help="more groups and recipes: DIR/recipe/NAME.yaml")
    options = parser.parse_intermixed_args(arguments)
    from pat.config.compose import compose

    overrides = under(["distill.weight=1.0"], options.overrides)  # which only training needs
    overrides += ["--config-dir", options.config_dir] if options.config_dir else []
    return compose(overrides, lambda config: _cache(config, options), steps_are_made=False)


def _cache(config: Any, options: argparse.Namespace) -> int:
    from pat.training.logit_cache_run import make

    cache = make(config, options.draws)
    print(f"{cache.describe()}; sha256 {cache.sha256}\nto train with it: pat train ... distill.cache={cache.folder}")
    return ExitCode.DONE
