"""Versions of variants: where each comes from, which one is `champion`, and the way back."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pat.commands._help import command_parser, exit_codes
from pat.common import files, partial
from pat.run.directory import ExitCode

if TYPE_CHECKING:
    from pat.registry.registry import Registry

WIDTH = 140  # of tables, at least
DIRECTORY = Path("runs/registry")
EVIDENCE = {"metrics": "pat evaluate", "profile": "pat profile", "gate": "pat gate"}
OTHERS = {"checks": "pat gate", "outcomes": "pat compare"}  # what else may be given by mistake, by a field of it

EXAMPLES = """\
examples:
  pat registry add reviews exports/half --metrics metrics.json --gate gate.json
  pat registry promote reviews 2 --as champion --gate gate.json --reason "4 % faster"
  pat registry rollback reviews --as champion --reason "complaints about short texts"
  pat registry diff reviews 1 champion
  pat registry verify reviews champion
  pat registry get reviews champion --out served
  pat registry publish reviews --project ours          all versions and aliases, as artifacts of Weights & Biases

VERSION is a number or an alias. docs/registry.md says what is recorded, and how MLflow's page shows it.

"""


def main(arguments: Sequence[str]) -> int:
    """`pat registry`."""
    parser = command_parser(
        prog="pat registry",
        usage="pat registry add NAME FOLDER [--metrics FILE] [--profile FILE] [--gate FILE]\n"
        "       pat registry list [NAME]\n"
        "       pat registry show NAME [VERSION]\n"
        "       pat registry promote NAME VERSION --as ALIAS [--gate FILE] [--reason TEXT] [--expect VERSION]\n"
        "       pat registry rollback NAME --as ALIAS [--reason TEXT] [--expect VERSION]\n"
        "       pat registry diff NAME A B [--each]\n"
        "       pat registry verify NAME VERSION\n"
        "       pat registry get NAME VERSION --out DIR\n"
        "       pat registry publish NAME [VERSION] --project PROJECT [--entity ENTITY]",
        description="Variants (what `pat export` and `pat prune` write, or any Hugging Face folder with safetensors)\n"
        "as versions of a name, on MLflow's model registry. Needs the extra: pip install 'pat-deepspeed[registry]'",
        epilog=EXAMPLES
        + exit_codes(
            {
                ExitCode.BROKEN_PROMISE: "a version is damaged or did not pass its gate, the gate is another's, or "
                "--expect says otherwise"
            }
        ),
    )
    parser.add_argument("what", choices=tuple(ACTIONS), help="what to do")
    parser.add_argument("words", nargs="*", metavar="NAME ...", help="what the action takes, as shown above")
    parser.add_argument(
        "--dir", type=Path, default=DIRECTORY, help=f"where the files of variants are (default: {DIRECTORY})"
    )
    parser.add_argument(
        "--uri",
        help="MLflow's database or server (default: MLFLOW_REGISTRY_URI, MLFLOW_TRACKING_URI, or SQLite in --dir)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="list, show, diff, verify: write the figures, too")
    parser.add_argument("--metrics", type=Path, metavar="FILE", help="add: what `pat evaluate --json` wrote")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="add: what `pat profile --json` wrote")
    parser.add_argument("--gate", type=Path, metavar="FILE", help="add, promote: what `pat gate --json` wrote")
    parser.add_argument(
        "--as", dest="alias", metavar="ALIAS", help="promote, rollback: alias to move, as champion or canary"
    )
    parser.add_argument("--reason", metavar="TEXT", help="promote, rollback: reason to keep in the history")
    parser.add_argument(
        "--expect",
        metavar="VERSION",
        help="promote, rollback: move only if ALIAS is this version now (a number, or none)",
    )
    parser.add_argument("--each", action="store_true", help="diff: show every matrix, not only sums")
    parser.add_argument("--out", type=Path, metavar="DIR", help="get: folder to write: a new one, or an empty one")
    parser.add_argument("--project", metavar="NAME", help="publish: project in Weights & Biases")
    parser.add_argument("--entity", metavar="NAME", help="publish: user or team there (default: the key's own)")
    options = parser.parse_intermixed_args(arguments)
    action, words, takes = ACTIONS[options.what]
    if not words[0] <= len(options.words) <= words[1]:
        raise ValueError(
            f"pat registry {options.what} takes {' or '.join(map(str, dict.fromkeys(words)))} words after it, not "
            f"{len(options.words)}: pat registry --help shows which"
        )
    for name in OPTIONS:
        if getattr(options, name) and name not in takes:
            flag = "as" if name == "alias" else name
            raise ValueError(f"--{flag} would be ignored: it does not go with pat registry {options.what}")
    if options.what in ("promote", "rollback") and not options.alias:
        raise ValueError("--as is missing: give the alias to move, such as --as champion")
    if options.json:
        files.check_writable(options.json, "--json")
    return action(_registry(options), options)


def _registry(options: argparse.Namespace) -> Registry:
    from pat.registry.mlflow_backend import MlflowBackend, address
    from pat.registry.registry import Registry

    uri = address(options.uri, options.dir)
    return Registry(options.dir, lambda new: MlflowBackend(uri, new))


def _add(registry: Registry, options: argparse.Namespace) -> int:
    from pat.registry import gates

    name, folder = options.words
    given = {kind: getattr(options, kind) for kind in EVIDENCE if getattr(options, kind)}
    evidence = {kind: gates.read(file, f"--{kind}", EVIDENCE[kind]) for kind, file in given.items()}
    for kind, content in evidence.items():
        right, wrong = EVIDENCE[kind], _command(content)
        if kind != "gate" and wrong != right:
            is_ = f"is what `{wrong} --json` wrote" if wrong else "holds no figures of a model"
            raise ValueError(f"--{kind} {given[kind]} {is_}: give what `{right} --json` wrote")
    version, new = registry.add(name, Path(folder), evidence)
    print(f"{name} version {version.number}{'' if new else ' holds this already'}: files {version.variant_sha256[:12]}")
    return ExitCode.DONE


def _command(content: Mapping[str, Any]) -> str | None:
    """The command whose JSON this is, as far as its fields tell."""
    from pat.evaluation.written import is_evaluation
    from pat.gate.profile import is_profile

    if is_evaluation(content):
        return "pat evaluate"
    if is_profile(content):
        return "pat profile"
    return next((command for field, command in OTHERS.items() if field in content), None)


def _list(registry: Registry, options: argparse.Namespace) -> int:
    from pat.registry import report

    every = {name: registry.versions(name) for name in options.words or registry.names()}
    _write(options, {name: [report.plain(each) for each in versions] for name, versions in every.items()})
    _print(*(report.versions_table(name, versions) for name, versions in every.items()))
    if not every:
        print("nothing is registered yet")
    return ExitCode.DONE


def _show(registry: Registry, options: argparse.Namespace) -> int:
    from pat.registry import report

    name, *which = options.words
    if which:
        version = registry.version(name, which[0])
        _write(options, report.plain(version))
        _print(report.version_table(version))
        return ExitCode.DONE
    versions, history = registry.versions(name), registry.history(name)
    plain = [report.plain(each) for each in versions]
    _write(options, {"versions": plain, "history": [dataclasses.asdict(each) for each in history]})
    _print(report.versions_table(name, versions), report.history_table(history))
    return ExitCode.DONE


def _promote(registry: Registry, options: argparse.Namespace) -> int:
    from pat.registry import gates, report

    name, which = options.words
    gate = gates.read(options.gate, "--gate", EVIDENCE["gate"]) if options.gate else None
    asked = time.time()
    moved = registry.promote(name, which, options.alias, options.reason or "", gate, options.expect)
    if moved.when_s < asked:
        print(f"{moved.alias} of {name} is version {moved.after} already: nothing has moved")
    else:
        said = report.move(moved, name)
        if moved.before == moved.after:
            said = (
                f"{moved.alias} of {name} already points to version {moved.after}. Something other than pat moved it; "
                "the history now says so"
            )
        print(f"{said} ({'no gate was asked' if moved.gate == 'none' else f'gate {moved.gate}'})")
    return ExitCode.DONE


def _rollback(registry: Registry, options: argparse.Namespace) -> int:
    from pat.registry import report

    moved = registry.rollback(options.words[0], options.alias, options.reason or "", options.expect)
    print(report.move(moved, options.words[0]))
    return ExitCode.DONE


def _diff(registry: Registry, options: argparse.Namespace) -> int:
    from pat.registry import maskdiff, report

    name, *which = options.words
    a, b = (registry.version(name, each) for each in which)
    rows = maskdiff.diff(*(registry.checked(each, [maskdiff.masks.FILE]) for each in (a, b)))
    _write(options, {"a": a.number, "b": b.number, "rows": [dataclasses.asdict(row) for row in rows]})
    _print(*report.diff_blocks(a, b, rows, options.each))
    return ExitCode.DONE


def _verify(registry: Registry, options: argparse.Namespace) -> int:
    from transformers.utils import logging

    from pat.registry import report
    from pat.registry.verify import verify

    logging.disable_progress_bar()
    version = registry.version(*options.words)
    checks = verify(registry.folder(version), version.record)
    _write(options, {"version": version.number, "checks": [dataclasses.asdict(check) for check in checks]})
    _print(report.checks_table(version, checks), report.outcome(version, checks))
    return ExitCode.DONE if all(check.passed for check in checks) else ExitCode.BROKEN_PROMISE


def _get(registry: Registry, options: argparse.Namespace) -> int:
    if options.out is None:
        raise ValueError("--out is missing: give the folder to write, a new one or an empty one")
    partial.clear(options.out)
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise ValueError(f"--out {options.out} is there already: give a new folder, or an empty one")
    version = registry.version(*options.words)
    registry.get(version, options.out)
    print(f"{version.name} version {version.number}: {len(version.record['files'])} files in {options.out}")
    return ExitCode.DONE


def _publish(registry: Registry, options: argparse.Namespace) -> int:
    if not options.project:
        raise ValueError("--project is missing: give the project of Weights & Biases, such as --project ours")
    from pat.registry.publish import publish
    from pat.registry.wandb_mirror import WandbMirror

    name, *which = options.words
    versions = [registry.version(name, which[0])] if which else registry.versions(name)
    mirror = WandbMirror(options.project, options.entity)
    publish(registry, versions, mirror, lambda text: print(text, flush=True))
    return ExitCode.DONE


OPTIONS = ("json", *EVIDENCE, "alias", "reason", "expect", "each", "out", "project", "entity")
Action = Callable[["Registry", argparse.Namespace], int]
ACTIONS: Mapping[str, tuple[Action, tuple[int, int], tuple[str, ...]]] = {  # fewest and most words after it
    "add": (_add, (2, 2), tuple(EVIDENCE)),
    "list": (_list, (0, 1), ("json",)),
    "show": (_show, (1, 2), ("json",)),
    "promote": (_promote, (2, 2), ("gate", "alias", "reason", "expect")),
    "rollback": (_rollback, (1, 1), ("alias", "reason", "expect")),
    "diff": (_diff, (3, 3), ("json", "each")),
    "verify": (_verify, (2, 2), ("json",)),
    "get": (_get, (2, 2), ("out",)),
    "publish": (_publish, (1, 2), ("project", "entity")),
}


def _write(options: argparse.Namespace, content: Any) -> None:
    if options.json:
        files.write_json(options.json, content)


def _print(*blocks: Any) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:  # a log has no width to fit
        console.width = max(console.width, WIDTH)
    for block in blocks:
        console.print(block)
