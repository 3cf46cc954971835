"""A prompt mix, representative of what models are asked: check a file, or sample one from logs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pat.commands._help import command_parser, exit_codes
from pat.common import files
from pat.run.directory import ExitCode

WIDTH = 110  # of the table, at least
OF_CHECK = ("json", "allow_code")  # options; the others are from-logs'

EXAMPLES = """\
examples:
  pat prompts check mix.jsonl
  pat prompts check mix.yaml --allow-code --json summary.json
  pat prompts from-logs prod.jsonl --prompt request.messages --slices domain,language --out mix.jsonl
  pat prompts from-logs rows.jsonl --prompt text --label label --slices label --out mix.jsonl      a classifier's rows
  pat prompts from-logs prod.jsonl --sample stratified --long-from 64 --n 500 --out mix.jsonl

The format is described in docs/compare.md. Logs hold what users wrote: remove what is private before a mix is shared.

"""


def main(arguments: Sequence[str]) -> int:
    """`pat prompts`."""
    parser = command_parser(
        prog="pat prompts",
        usage="pat prompts check FILE|NAME [options]\n       pat prompts from-logs FILE --out FILE [options]",
        description="check      read a mix (JSONL, YAML, or the name of one that comes with pat), try its references\n"
        "           on its own checks, and sum it up\n"
        "from-logs  a mix of the prompts in a log (JSONL, .csv, .tsv), with weights that say how often each kind is\n"
        "           asked",
        epilog=EXAMPLES + exit_codes(),
    )
    parser.add_argument("what", choices=("check", "from-logs"), help="what to do")
    parser.add_argument("file", metavar="FILE", help="the mix, or the log")
    parser.add_argument("--json", type=Path, metavar="FILE", help="check: write the figures, too")
    parser.add_argument("--allow-code", action="store_true", help="check: run checks that are Python functions")
    of_logs = parser.add_argument_group("from-logs")
    of_logs.add_argument("--out", type=Path, metavar="FILE", help="the mix to write, .jsonl")
    of_logs.add_argument("--n", type=int, default=200, help="most prompts to take (default: 200)")
    of_logs.add_argument(
        "--sample",
        choices=("stratified", "random"),
        default="stratified",
        help="how prompts are drawn (default: stratified)",
    )
    of_logs.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the sample (default: 0)")
    of_logs.add_argument("--prompt", default="prompt", metavar="COLUMN", help="texts or messages (default: prompt)")
    of_logs.add_argument("--reference", metavar="COLUMN", help="right answers")
    of_logs.add_argument("--label", metavar="COLUMN", help="right labels of a classifier: each prompt checks its own")
    of_logs.add_argument("--slices", default="", metavar="COLUMN,...", help="columns that divide the traffic")
    of_logs.add_argument("--long-from", type=int, metavar="WORDS", help="also slice by length: form=long from WORDS on")
    of_logs.add_argument("--prompt-tokens", metavar="COLUMN", help="lengths of prompts")
    of_logs.add_argument("--output-tokens", metavar="COLUMN", help="lengths of outputs")
    of_logs.add_argument("--skip-bad", action="store_true", help="leave out lines that hold no prompt, and count them")
    options = parser.parse_intermixed_args(arguments)
    _refuse_of_other(parser, options)
    return _check(options) if options.what == "check" else _from_logs(options)


def _refuse_of_other(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """ValueError for an option that the other one of the two would read."""
    for action in parser._actions:
        if action.option_strings and getattr(options, action.dest, action.default) != action.default:
            of = "check" if action.dest in OF_CHECK else "from-logs"
            if of != options.what:
                raise ValueError(f"{action.option_strings[0]} is an option of `pat prompts {of}`: leave it out")


def _check(options: argparse.Namespace) -> int:
    from rich.console import Console

    from pat.prompts import reader, summary

    if options.json:
        files.check_writable(options.json, "--json")
    mix = reader.read(reader.find(options.file), options.allow_code)
    found = summary.summarise(mix)
    if options.json:
        files.write_json(options.json, found)
    console = Console(highlight=False, markup=False)
    console.width = max(console.width, WIDTH)
    console.print(summary.table(found))
    counted = ", ".join(f"{name} {count}" for name, count in found["checks"].items())
    console.print(f"{mix.name}: {len(mix.prompts)} prompts; checks: {counted or 'none'}")
    for sentence in found["warnings"]:
        console.print(f"note: {sentence}")
    return ExitCode.DONE


def _from_logs(options: argparse.Namespace) -> int:
    from pat.prompts import logs, reader

    if options.out is None:
        raise ValueError("--out is missing: give the file to write, as --out mix.jsonl")
    files.check_writable(options.out, "--out")
    if options.out.suffix != ".jsonl":
        raise ValueError(f"--out {options.out} must end in .jsonl")
    if options.out.exists():
        raise ValueError(
            f"--out {options.out} is there already, and mixes are edited by hand: give a new file, or remove it"
        )
    if options.n < 1:
        raise ValueError(f"--n {options.n}: give 1 or more")
    if not Path(options.file).is_file():
        raise ValueError(f"there is no file {options.file}: give a log, a JSON mapping a line, or .csv")
    columns = logs.Columns(
        prompt=options.prompt,
        reference=options.reference,
        label=options.label,
        slices=tuple(filter(None, options.slices.split(","))),
        prompt_tokens=options.prompt_tokens,
        output_tokens=options.output_tokens,
    )
    made = logs.sample(
        Path(options.file), columns, options.n, options.sample, options.seed, options.long_from, options.skip_bad
    )
    reader.write(options.out, made.head, made.prompts)
    skipped = f", {made.skipped:,} line{'s' * (made.skipped > 1)} left out" if made.skipped else ""
    merged = f" (equal ones of {made.drawn} are one)" if made.drawn > len(made.prompts) else ""
    print(
        f"{len(made.prompts)} prompts{merged} of {made.rows:,} rows{skipped}, {len(made.strata)} strata: {options.out}"
    )
    if not any(prompt.checks or prompt.reference for prompt in made.prompts):
        print("they have no checks and no references, which pat evaluate and pat gate need: see --label, --reference")
    return ExitCode.DONE
