"""Write one self-contained page about runs, sweeps, exports and comparisons, for those who decide."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pat.commands._help import command_parser, exit_codes
from pat.common import files
from pat.run.directory import ExitCode

EXAMPLES = """\
examples:
  pat report runs/pruned --out report.html
  pat report runs/dense runs/pruned pruned figures.json gate.json --out report.html --markdown report.md
  pat report sweeps/widths --out widths.html

Give what there is: run directories, sweeps, exported folders, and the JSON that pat compare, pat gate, pat profile and
pat evaluate write. The page loads nothing and runs no script. docs/report.md says what is on it.

"""


def main(arguments: Sequence[str]) -> int:
    """`pat report`."""
    parser = command_parser(
        prog="pat report",
        usage="pat report RUN|SWEEP|VARIANT|JSON [...] --out FILE.html [--markdown FILE.md] [options]",
        description="The decision on top, then quality, latency, size and cost, training curves, sparsity per layer,\n"
        "prompts that became worse, lineage, and the commands to get the same again.",
        epilog=EXAMPLES + exit_codes(),
    )
    parser.add_argument("given", nargs="+", type=Path, metavar="RUN|SWEEP|VARIANT|JSON", help="what it is about")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page to write, .html")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the same as Markdown, without pictures")
    parser.add_argument("--title", help="of the page (default: the name of what it is about)")
    parser.add_argument("--worst", type=int, default=5, metavar="N", help="prompts of each outcome (default: 5)")
    options = parser.parse_intermixed_args(arguments)
    if options.out is None and options.markdown is None:
        raise ValueError("no file to write: give --out report.html, --markdown report.md, or both")
    if options.worst < 0:
        raise ValueError(f"--worst {options.worst}: give 0 or more")
    for file, flag in ((options.out, "--out"), (options.markdown, "--markdown")):
        if file is not None:
            files.check_writable(file, flag)
    from pat.report import build, sources
    from pat.report.markdown import markdown
    from pat.report.render import html

    made = build.page(sources.read(options.given), options.worst, options.title)
    if options.out is not None:
        files.write_atomic(options.out, html(made))
    if options.markdown is not None:
        files.write_atomic(options.markdown, markdown(made))
    print(f"{made.decision.word}: {made.decision.sentence}")
    for file in filter(None, (options.out, options.markdown)):
        print(f"the report is in {file}")
    return ExitCode.DONE
