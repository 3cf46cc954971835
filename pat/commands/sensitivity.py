"""What a model can do without: its loss with each part removed in turn, before any training."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pat.commands import _inferred
from pat.commands._help import command_parser, exit_codes
from pat.commands._inferred import MAX_LENGTH, NO_MORE, by_options
from pat.commands._overrides import of_file, one_model, under
from pat.config.quoting import quoted
from pat.run.directory import ExitCode
from pat.schema import ENDINGS

WIDTH = 110  # of the table, at least
# Keys of `pat train`, as errors name them, by which option sets them here.
OPTIONS = {
    r"task\.name\b": "--task",
    r"data\.max_length\b": "--max-length",
    r"data\.max_eval_samples\b": "--samples",
    rf"data\.(train|eval){NO_MORE}": "--data",
}

EXAMPLES = """\
examples:
  pat sensitivity /models/llama --data heldout.jsonl --samples 32
  pat sensitivity recipe=sotu data.max_eval_samples=8 engine.dtype=fp32
  pat sensitivity /models/chat --data heldout.jsonl --task chat --max-length 1024
  pat sensitivity /models/my-classifier --data heldout.csv --max-length 128 data.text_column=review \\
      --fractions 0.5,0.8 --kinds 'ffn,heads,*layers'

Each linear map of each layer loses its smallest weights; each structure (ffn, heads or kv_groups) its smallest units;
layers, attention_layers and mlp_layers go as a whole. One at a time, on held-out data, nothing is trained. Shares
become whole units: of three KV groups one or two go, and the table says 1/3 or 2/3. The folder holds cells.jsonl
(finished ones; the same command goes on there), sensitivity.json, .csv and, with matplotlib, .png.

Computed in bf16 on a GPU and in fp32 on a CPU, unless engine.dtype or a recipe says otherwise.

"""


def main(arguments: Sequence[str]) -> int:
    """`pat sensitivity`."""
    parser = command_parser(
        prog="pat sensitivity",
        usage="pat sensitivity MODEL --data FILE [key=value ...] [options]\n"
        "       pat sensitivity recipe=NAME [key=value ...] [options]",
        epilog=EXAMPLES + exit_codes(),
    )
    parser.add_argument("words", nargs="*", metavar="MODEL | key=value", help="a model's folder or name; keys of train")
    parser.add_argument("--data", metavar="FILE", help=f"held-out rows: {', '.join(ENDINGS)}; all of them are used")
    parser.add_argument(
        "--task", help="causal_lm, chat, classification, regression (default: what the model's head is for)"
    )
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help=f"tokens of a sample (default: {MAX_LENGTH}; of an export, what it was trained with)",
    )
    parser.add_argument(
        "--samples",
        type=int,
        metavar="N",
        help="held-out samples to measure the loss on, from all over the data (default: all); in `pat prune` these are "
        "samples to calibrate on",
    )
    parser.add_argument(
        "--fractions", default="0.25,0.5,0.75", metavar="X,...", help="shares to remove (default: 0.25,0.5,0.75)"
    )
    parser.add_argument(
        "--kinds", default="*", metavar="KIND,...", help="what to remove, as 'mlp.*,ffn,layers' (default: all)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder to write (default: sensitivity/NAME of the recipe or model)"
    )
    parser.add_argument("--config-dir", metavar="DIR", help="more groups and recipes: DIR/recipe/NAME.yaml")
    options = parser.parse_intermixed_args(arguments)
    fractions = _numbers(options.fractions)
    from pat.config.compose import compose

    try:
        return compose(_overrides(options), lambda config: _measure(config, fractions, options))
    except ValueError as error:
        model, keys = one_model(options.words)
        if not _has_recipe(keys):
            said = str(error)
            error.args = (by_options(said, OPTIONS, keys) + _inferred.named_by_export(said, model, keys),)
        raise


def _measure(config: Any, fractions: list[float], options: argparse.Namespace) -> int:
    from rich.console import Console

    from pat.sensitivity import plot
    from pat.sensitivity.report import table
    from pat.sensitivity.run import run

    name = config.run.recipe or Path(config.model.path or config.run.name).name
    out = options.out or Path("sensitivity") / name
    result = run(config, fractions, options.kinds.split(","), out)
    console = Console()
    console.width = max(console.width, WIDTH)
    console.print(table(result["cells"], result["baseline"]))
    print(f"written to {out}: sensitivity.json, .csv" + (", .png" if plot.available() else f"; {plot.MISSING}"))
    return ExitCode.DONE


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--fractions {text}: give numbers with commas between them, as 0.25,0.5") from None


def _has_recipe(keys: Sequence[str]) -> bool:
    return any(key.startswith("recipe=") for key in keys)


def _overrides(options: argparse.Namespace) -> list[str]:
    """Keys for Hydra. Without a recipe, the model says what no option does, and keys that only training needs get
    arbitrary values."""
    model, keys = one_model(options.words)
    overrides = [f"model.path={quoted(model)}"] if model else []
    if options.data:
        overrides += [*of_file("--data", options.data), f"data.eval={quoted(options.data)}"]
    if options.samples is not None and options.samples < 1:
        raise ValueError(f"--samples {options.samples}: give 1 or more, or leave it out to take all")
    overrides += [f"data.max_eval_samples={options.samples}"] if options.samples else []
    if model and not _has_recipe(keys):
        if not options.data and not any(key.startswith(("data=", "data.source=")) for key in keys):
            raise ValueError("no --data FILE is given: held-out texts or rows to measure the loss on")
        config = _inferred.model_config(model, keys)
        task = options.task or _inferred.task_of(model, config, keys)
        overrides += [f"task={task}", *_inferred.samples(model, config, task, options.max_length)]
    else:
        overrides += [f"task={options.task}"] if options.task else []
        overrides += [] if options.max_length is None else [f"data.max_length={options.max_length}"]
    if not _has_recipe(keys):
        from pat.zero.engine import accelerator

        dtype = "bf16" if accelerator() == "cuda" else "fp32"
        unused = {"train.num_steps": 1, "train.global_batch_size": 8, "optim.lr": 1, "engine.dtype": dtype}
        overrides = [f"{key}={value}" for key, value in unused.items()] + overrides
    return [*under(overrides, keys), *(["--config-dir", options.config_dir] if options.config_dir else [])]
