"""The most that can be pruned inside an envelope, by bisection over forks of one run."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pat.commands import _models
from pat.commands._help import SEARCH_EXIT_CODES, command_parser
from pat.launch.environment import rank_environment
from pat.run.directory import ExitCode

if TYPE_CHECKING:
    from pat.search.judged import Measuring

BUDGET = "budget=largest_within_envelope"  # how `pat train` is told
EXAMPLES = f"""\
examples:
  pat search recipe=reviews envelope.accuracy.drop=0.01
  pat search recipe=sotu envelope.perplexity.ratio=1.3 --from 0.3 --to 0.7 --within 0.05
  pat search recipe=decoder_narrow model.path=/m data.source=json data.train=t.jsonl train.num_steps=500 \\
      envelope.loss.ratio=1.1 --from 0.9
  pat search recipe=reviews envelope.accuracy.drop=0.01 envelope.slices.drop=0.03 envelope.slices.least=100
  pat search recipe=decoder_narrow ... pruners.narrow.schedule.start=0.1 envelope.loss.ratio=1.1 \\
      envelope.latency_p95.ratio=0.8 --lengths 128:32
  pat search recipe=reviews envelope.accuracy.drop=0.01 --jobs 4       four runs at once: more of them, in fewer rounds
  pat search recipe=reviews envelope.accuracy.drop=0.01 --dry-run
  pat train recipe=reviews envelope.accuracy.drop=0.01 {BUDGET}      the same as the first

DIR gets search.json (every run with its sparsity, metrics, verdict and cost), logs/, and a run directory for each
value; checkpoints are kept of the best run only. Interrupted? The same command goes on, and repeats no finished run.
docs/search.md says more.

"""


def main(arguments: Sequence[str]) -> int:
    """`pat search`."""
    parser = command_parser(
        prog="pat search",
        usage="pat search recipe=NAME envelope.METRIC.BOUND=value [key=value ...] [options]",
        description="Find the largest sparsity, or the smallest share of structures to keep, whose run is inside the\n"
        "envelope. The steps before the first cut are trained once, and every value is a fork of them, with the\n"
        "bits of a run that has that value from the start. The recipe's budget is the largest value that is tried.",
        epilog=EXAMPLES + SEARCH_EXIT_CODES,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="a key to change, as in `pat train`")
    parser.add_argument("--pruner", metavar="NAME", help="whose budget is searched (default: the only one)")
    parser.add_argument(
        "--from",
        dest="first",
        type=float,
        metavar="X",
        help="where the search begins, the least pruned: a sparsity "
        "or, of structures, the share kept (default: a quarter of what the budget removes)",
    )
    parser.add_argument(
        "--to",
        dest="last",
        type=float,
        metavar="X",
        help="where it ends, the most pruned, in the same unit (default: the budget)",
    )
    parser.add_argument(
        "--within", type=float, default=0.02, metavar="X", help="how near the answer must be (default: %(default)s)"
    )
    parser.add_argument("--mix", metavar="FILE|NAME", help="prompts, for limits on passed, slices, latency_p95, ...")
    parser.add_argument("--allow-code", action="store_true", help="run the mix's checks that are Python functions")
    parser.add_argument(
        "--lengths", metavar="P:O,...", help="prompt and output tokens of latencies (default: the mix's)"
    )
    parser.add_argument(
        "--requests", type=int, default=20, metavar="N", help="requests that measure each latency (default: 20)"
    )
    parser.add_argument(
        "--price-per-hour", type=float, metavar="X", help="price for a limit on cost_per_million_tokens"
    )
    parser.add_argument("--confident", action="store_true", help="judge by whole intervals, as `pat gate --confident`")
    _models.add_dtype_option(parser, "measure")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once (default: 1)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder to write (default: run.dir, else searches/NAME)"
    )
    parser.add_argument("--keep-all", action="store_true", help="keep the checkpoints of all runs")
    parser.add_argument("--config-dir", metavar="DIR", help="more groups and recipes: DIR/recipe/NAME.yaml")
    parser.add_argument("--dry-run", action="store_true", help="check, say what would run, and stop")
    options = parser.parse_intermixed_args(arguments)
    if options.jobs < 1:
        raise ValueError(f"--jobs {options.jobs}: give 1 or more")
    if rank_environment():
        raise ValueError("a search starts its runs' ranks itself: call it from a plain shell, not under a launcher")
    from pat.search import plan
    from pat.search.search import Search
    from pat.sweeps.runner import check_hosts

    overrides = [each for each in options.overrides if each != BUDGET]
    span = plan.Span(options.pruner, options.first, options.last, options.within)
    made = plan.make(overrides, options.out, span, options.config_dir, _measuring(options))
    _check_measuring(options, made.config.envelope)
    check_hosts([made.dense], options.jobs)
    print(made.in_words(options.jobs), flush=True)
    if options.dry_run:
        return ExitCode.DONE
    given, say = ["pat", "search", *arguments], lambda text: print(text, flush=True)
    return Search(made, given, say, options.keep_all, options.jobs).run()


def _check_measuring(options: argparse.Namespace, limited: Collection[str]) -> None:
    """ValueError for options of a measurement when only metrics of the task are limited: they would be ignored."""
    from pat.envelope.figures import PROFILE, others
    from pat.envelope.spec import SLICES

    given = {"mix": options.mix, "lengths": options.lengths, "price-per-hour": options.price_per_hour}
    given |= {"confident": options.confident, "requests": options.requests != 20, "dtype": options.dtype != "fp32"}
    measured = any(name == SLICES or name in others() for name in limited)
    ignored = next((name for name, value in given.items() if value), None)
    if not measured and ignored:
        raise ValueError(
            f"--{ignored} would be ignored: every limit is on a metric of the task, which the runs evaluate themselves"
        )
    profiled = any(name in others() and PROFILE in others()[name].sources for name in limited)
    if options.lengths and not profiled:
        raise ValueError("--lengths would be ignored: no limit is on latency, throughput or memory")


def _measuring(options: argparse.Namespace) -> Measuring:
    """How figures that runs do not evaluate themselves are measured. Raises ValueError."""
    from pat.search.judged import Measuring

    if options.allow_code and not options.mix:
        raise ValueError("--allow-code would be ignored: only a mix has checks")
    if options.requests < 6:
        raise ValueError(f"--requests {options.requests}: give 6 or more")
    _models.check_price(options.price_per_hour)
    return Measuring(
        mix=options.mix,
        allow_code=options.allow_code,
        lengths=options.lengths,
        requests=options.requests,
        price_per_hour=options.price_per_hour,
        dtype=options.dtype,
        device=_models.device(None),
        confident=options.confident,
    )
