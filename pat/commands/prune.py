"""Prune a model without training it: calibrate, cut, export."""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pat.commands import _inferred
from pat.commands._help import RUN_EXIT_CODES, command_parser
from pat.commands._inferred import MAX_LENGTH, NO_MORE, by_options
from pat.commands._overrides import of_file, one_model, under
from pat.common import partial
from pat.config.quoting import quoted
from pat.launch.environment import rank_environment
from pat.run.directory import RunDir
from pat.schema import ENDINGS

DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
# Keys of `pat train`, as errors name them, by which option sets them here.
OPTIONS = {
    r"(choose|take|use) another run\.dir": "give another --out",
    r"(pruners\.weights\.(budget: )?)?budget\.sparsity": "--sparsity",
    r"(pruners\.narrow\.(budget: )?)?budget\.keep\.": "--keep ",
    r"pruners\.narrow\.(structures|budget(?= removes nothing))": "--keep",
    r"(pruners\.\w+\.((criterion|gate): )?)?(criterion|gate)\.num_samples\b": "--samples",
    r"(pruners\.\w+\.((criterion|gate): )?)?(criterion|gate)\.reconstruct\b": "--reconstruct",
    r"^n_of_m:": "--pattern:",
    r"^there is no (?=(criterion|gate) called)": "--method: there is no ",
    r"engine\.world_size\b": "--ranks",
    r"data\.max_length\b": "--max-length",
    rf"data\.train{NO_MORE}": "--data",
    rf"data\.eval{NO_MORE}": "--eval",
}

EXAMPLES = """\
examples:
  pat prune /models/llama --data texts.jsonl --sparsity 0.5 --out pruned       half of the layers' weights
  pat prune /models/llama --data texts.jsonl --pattern 2:4 --out pruned        two of every four
  pat prune /models/llama --data chats.jsonl --task chat --sparsity 0.5 --out pruned
  pat prune /models/classifier --data rows.csv --sparsity 0.8 --out pruned data.text_column=review

--data is what the model is calibrated on: the first --samples of it in the order of training. --eval, or a part of
--data that is held out, measures what was lost. Columns are called as an export's were in its training, unless
data.text_column, data.label_column say otherwise. Beside DIR stands DIR.run: logs, metrics.jsonl, summary.json; the
same command goes on there. Of a decoder a few training steps heal much of what a cut loses: `pat train recipe=decoder`
takes the same model and data and train.num_steps. An encoder should have learned its task before it is cut.

On CPUs the cut of a decoder takes minutes, most of them for its matrices, however few the samples are: --reconstruct 0
and --method wanda are faster, and lose more. A smaller --eval is measured sooner, before and after.

"""


def main(arguments: Sequence[str]) -> int:
    """`pat prune`."""
    parser = command_parser(
        prog="pat prune",
        usage="pat prune MODEL --data FILE (--sparsity S | --pattern N:M | --keep UNITS) --out DIR [key=value ...]",
        description="Remove weights or structures of a trained model at once, chosen by the inputs of each matrix on\n"
        "calibration samples; the rest is fitted to make up for them. Nothing is trained.",
        epilog=EXAMPLES + RUN_EXIT_CODES,
    )
    parser.add_argument("words", nargs="+", metavar="MODEL | key=value", help="a model's folder or name; keys of train")
    parser.add_argument(
        "--data", metavar="FILE", help=f"data to calibrate on: {', '.join(ENDINGS)}; or data.source=NAME"
    )
    parser.add_argument("--eval", metavar="FILE", help="data to evaluate on (default: 5 %% of --data)")
    how_much = parser.add_mutually_exclusive_group(required=True)
    how_much.add_argument("--sparsity", type=float, metavar="S", help="share of the layers' weights to remove: 0.5")
    how_much.add_argument("--pattern", metavar="N:M", help="keep N of every M weights: 2:4")
    how_much.add_argument(
        "--keep", metavar="NAME=N,...", help="structures to keep in every layer, a number or a share: ffn=0.5"
    )
    parser.add_argument("--method", metavar="NAME", help="alps (default), wanda, magnitude; of structures: obs")
    parser.add_argument(
        "--task",
        help="causal_lm, chat, classification, token_classification or regression (default: what the model's head is "
        "for)",
    )
    parser.add_argument(
        "--samples",
        type=int,
        metavar="N",
        help="samples of --data to calibrate on (default: 128; of a classifier 2,048, or 512 with --keep); in "
        "`pat sensitivity` these are held-out samples",
    )
    parser.add_argument(
        "--reconstruct",
        type=int,
        metavar="N",
        help="passes over the samples after each cut, to fit the layer to its earlier outputs: better, but slower "
        "(default: of weights 1, of structures 0)",
    )
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help=f"tokens of a sample (default: {MAX_LENGTH}; of an export, what it was trained with)",
    )
    parser.add_argument("--ranks", type=int, metavar="N", help="processes, one per GPU (default: 1)")
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES.values()), help="precision of the result (default: the model's)"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to write: a new one, or an empty one"
    )
    parser.add_argument("--dry-run", action="store_true", help="check all that a start checks, say what it does, stop")
    options = parser.parse_intermixed_args(arguments)
    if rank_environment():
        raise ValueError("pat prune starts its ranks itself (--ranks N): call it from a plain shell")
    if options.sparsity == 0.0:
        raise ValueError("--sparsity 0 removes nothing: give the share of the weights that is to go, such as 0.5")
    partial.clear(options.out)
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise ValueError(f"--out {options.out} is there already: give a new folder")
    from pat.commands import export, train

    out = options.out.resolve()
    run = Path(f"{options.out}.run") if out.name == options.out.name else out.with_name(f"{out.name}.run")
    model, keys = one_model(options.words)
    if model is None:
        raise ValueError("no model is given: pat prune MODEL --data FILE ...")
    config = _inferred.model_config(model, keys)
    try:
        code = train.main([*_overrides(options, model, keys, config, run), *(["--dry-run"] if options.dry_run else [])])
    except ValueError as error:
        said = str(error)
        error.args = (by_options(said, OPTIONS, options.words) + _inferred.named_by_export(said, model, keys),)
        raise
    if code:
        return code
    if options.dry_run:
        print(f"pat: nothing was pruned; without --dry-run the result would be exported to {options.out}")
        return code
    print(f"pat: exporting the result to {options.out}; the run's checkpoint is removed afterwards", flush=True)
    dtype = options.dtype or _dtype(config)
    code = export.main([str(run), "--out", str(options.out), "--checkpoint", "last", "--dtype", dtype])
    if not code:
        shutil.rmtree(RunDir(run).checkpoints)  # their content is in DIR, but for an optimizer that has not stepped
        print(f"pat: {run} keeps the log, the settings and the figures of the cut (pat report, pat status)")
    return code


def _dtype(config: Any) -> str:
    """The precision that the model says it has, or transformers' default."""
    return DTYPES.get(str(getattr(config, "dtype", None)).removeprefix("torch."), "fp32")


def _overrides(options: argparse.Namespace, model: str, keys: Sequence[str], config: Any, run: Path) -> list[str]:
    """The same run, as keys of `pat train`."""
    from pat.zero.engine import accelerator

    if not options.data and not any(key.startswith(("data=", "data.source=")) for key in keys):
        raise ValueError("no --data FILE is given: the texts or rows that the model is calibrated on")
    if any(key.startswith("run.dir=") for key in keys):
        raise ValueError(f"run.dir cannot be given here: the run stands beside --out, in {run}")
    task = options.task or _inferred.task_of(model, config, keys)
    recipe = f"{'encoder' if _inferred.classifies(task) else 'decoder'}{'_narrow' if options.keep else ''}"
    defaults = [
        f"recipe={recipe}",
        f"task={task}",
        f"model.path={quoted(model)}",
        *(of_file("--data", options.data) if options.data else []),
        f"data.eval={quoted(options.eval) if options.eval else 'null'}",
        *_inferred.samples(model, config, task, options.max_length),
        f"run.dir={quoted(str(run))}",
        "train.num_steps=0",
        f"engine.world_size={1 if options.ranks is None else options.ranks}",
        f"engine.dtype={'bf16' if accelerator() == 'cuda' and _dtype(config) == 'bf16' else 'fp32'}",  # rounds nothing
        "logger=none",
        *(_structures(options) if options.keep else _weights(options)),
    ]
    return under(defaults, keys)


def _weights(options: argparse.Namespace) -> list[str]:
    place = "pruners.weights"
    if options.pattern:
        match = re.fullmatch(r"(\d+):(\d+)", options.pattern)
        if match is None or not 0 < int(match[1]) < int(match[2]):
            raise ValueError(f"--pattern {options.pattern}: give N:M with N below M, as 2:4")
        n, m = int(match[1]), int(match[2])
        keys = [f"{place}.granularity.name=n_of_m", f"{place}.granularity.n={n}", f"{place}.granularity.m={m}"]
        keys += [f"{place}.budget.sparsity={1 - n / m!r}"]
    else:
        keys = [f"{place}.budget.sparsity={options.sparsity!r}"]
    if options.method:
        keys += [f"{place}.criterion.name={options.method}"]
        if options.method != "alps" and not options.pattern:
            keys += [f"{place}.scope={'row' if options.method == 'wanda' else 'matrix'}"]
    return [*keys, *_calibration(options, "criterion", f"{place}.criterion")]


def _structures(options: argparse.Namespace) -> list[str]:
    place, keep = "pruners.narrow", {}
    for part in options.keep.split(","):
        match = re.fullmatch(r"(\w+)=(\d+(?:\.\d+)?|\.\d+)", part)
        if match is None:
            raise ValueError(f"--keep {options.keep}: give NAME=NUMBER or NAME=SHARE, with commas: ffn=0.5,kv_groups=2")
        if match[1] in keep:
            raise ValueError(f"--keep {options.keep}: {match[1]} is given twice")
        keep[match[1]] = match[2]
    keys = [f"{place}.structures=[{','.join(keep)}]"]
    keys += [f"{place}.budget.keep={{{','.join(f'{name}:{count}' for name, count in keep.items())}}}"]
    keys += [f"{place}.gate.name={options.method}"] if options.method else []
    return [*keys, *_calibration(options, "gate", f"{place}.gate")]


def _calibration(options: argparse.Namespace, kind: str, place: str) -> list[str]:
    """Raises ValueError where the method looks at no samples."""
    from pat.pruning import registry
    from pat.pruning.calibration.settings import RECONSTRUCT_LR

    given = {"num_samples": ("--samples", options.samples), "reconstruct": ("--reconstruct", options.reconstruct)}
    for key, (flag, value) in given.items():
        known = options.method in registry.names(kind)
        if value is not None and known and key not in registry.defaults(kind, options.method):
            raise ValueError(f"{flag} {value} would be ignored: --method {options.method} looks at no samples")
    keys = [f"{place}.{key}={value}" for key, (_, value) in given.items() if value is not None]
    return [*keys, f"{place}.reconstruct_lr={RECONSTRUCT_LR}"] if options.reconstruct == 0 else keys
