"""Write one self-contained page about runs, sweeps, exports and comparisons, for those who decide."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pat.commands._help import command_parser, exit_codes
from pat.commands.registry import DIRECTORY
from pat.common import files
from pat.run.directory import ExitCode

EXAMPLES = """\
examples:
  pat report runs/pruned --out report.html
  pat report runs/dense runs/pruned pruned figures.json gate.json --out report.html --markdown report.md
  pat report sweeps/widths --out widths.html
  pat report reviews/champion compare.json --out champion.html

Give what there is: run directories, sweeps, exported folders, and the JSON that pat compare, pat gate, pat profile and
pat evaluate write. NAME/VERSION or NAME/ALIAS of the registry brings along what was measured of it. The page loads
nothing and runs no script. docs/report.md says what is on it.

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
    parser.add_argument(
        "given",
        nargs="+",
        type=Path,
        metavar="RUN|SWEEP|VARIANT|JSON",
        help="what to report on; also NAME/VERSION of the registry",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page to write, .html")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the page as Markdown, without pictures")
    parser.add_argument("--title", help="title of the page (default: the subject's name)")
    parser.add_argument(
        "--worst", type=int, default=5, metavar="N", help="prompts to show of each outcome (default: 5)"
    )
    parser.add_argument("--dir", type=Path, help=f"folder of the registry, for NAME/VERSION (default: {DIRECTORY})")
    parser.add_argument("--uri", help="the registry's database or server, as in `pat registry`")
    options = parser.parse_intermixed_args(arguments)
    if options.out is None and options.markdown is None:
        raise ValueError("no file to write: give --out report.html, --markdown report.md, or both")
    if options.worst < 0:
        raise ValueError(f"--worst {options.worst}: give 0 or more")
    for file, flag in ((options.out, "--out"), (options.markdown, "--markdown")):
        if file is not None:
            files.check_writable(file, flag)
    from pat.report import build, reading
    from pat.report.markdown import markdown
    from pat.report.render import html

    asked: list[str] = []

    def version(given: str) -> tuple[Path, dict[str, Any]]:
        asked.append(given)
        return _registered(given, options.dir or DIRECTORY, options.uri)

    found = reading.read(options.given, version)
    if not asked and (options.dir or options.uri):
        raise ValueError(
            f"--{'dir' if options.dir else 'uri'} would be ignored: no NAME/VERSION of a registry is given"
        )
    made = build.page(found, options.worst, options.title)
    if options.out is not None:
        files.write_atomic(options.out, html(made))
    if options.markdown is not None:
        files.write_summary(options.markdown, markdown(made))
    print(f"{made.decision.word}: {made.decision.sentence}")
    for file in filter(None, (options.out, options.markdown)):
        print(f"the report is in {file}")
    return ExitCode.DONE


def _registered(given: str, root: Path, uri: str | None) -> tuple[Path, dict[str, Any]]:
    """(its files, once they are known to be whole; what is recorded of it) of NAME/VERSION. ValueError."""
    if not root.is_dir():
        raise ValueError(
            f"there is no {given}, and no registry in {root}: give a run, a sweep, an export, a JSON file, or "
            "NAME/VERSION of a registry that --dir names"
        )
    from pat.registry import named
    from pat.registry.variant import own_hashes

    registry = named.opened(root, uri)
    version = named.version(registry, given, given)
    return registry.checked(version), {
        "label": f"{version.name} version {version.number}",
        "added_by": version.added_by,
        "added_s": version.added_s,
        "aliases": list(version.aliases),
        "variant_sha256": version.variant_sha256,
        "weights": sorted(own_hashes(version.record)),
        "evidence": version.record["evidence"],
    }
