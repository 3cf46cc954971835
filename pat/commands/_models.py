"""Options of the commands that load models: folders among keys, the device, the dtype."""

from __future__ import annotations

import argparse
import math
import os
import sys
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pat.common import files, secrets
from pat.common.text import did_you_mean

SILENT_S = 30.0  # of work before a line says what it is
WIDEST = 1_000  # columns of a table where no terminal limits them


def add_options(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """--device, --dtype, --config-dir, --json."""
    keep_words(parser, arguments)
    parser.add_argument("--device", help="cpu, cuda, ... (default: the GPU if there is one)")
    add_dtype_option(parser)
    parser.add_argument("--config-dir", metavar="DIR", help="more groups and recipes: DIR/recipe/NAME.yaml")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, too")


def add_dtype_option(parser: argparse._ActionsContainer, use: str = "compute") -> None:
    """--dtype, whose help says what is done in it."""
    parser.add_argument(
        "--dtype",
        choices=("fp32", "bf16", "fp16"),
        default="fp32",
        help=f"precision to {use} in, whatever the files have (default: fp32, on a GPU, too)",
    )


@contextmanager
def busy(said: str) -> Generator[None]:
    """What takes a while is said: by a spinner, and where there is no terminal in a line, once it has taken long."""
    from rich.console import Console

    console = Console(stderr=True)
    line = threading.Timer(SILENT_S, partial(print, f"pat: {said}", file=sys.stderr, flush=True))
    line.daemon = True
    if not console.is_terminal:
        line.start()
    try:
        with console.status(said):
            yield
    finally:
        line.cancel()


def keep_words(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """Into the options, for `write_json`."""
    parser.set_defaults(typed=[*parser.prog.split(), *arguments])


def add_mix_options(parser: argparse.ArgumentParser, use: str = "ask the prompts of a mix") -> None:
    """--mix, whose help says what it is for; --allow-code, --batch-size."""
    parser.add_argument("--mix", metavar="FILE|NAME", help=f"{use} (pat prompts --help)")
    parser.add_argument("--allow-code", action="store_true", help="run a mix's checks that are Python functions")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="prompts answered at once (default: 8)")


def add_statistics_options(parser: argparse.ArgumentParser) -> None:
    """--confidence, --seed."""
    parser.add_argument(
        "--confidence", type=float, default=0.95, metavar="X", help="confidence of intervals and tests (default: 0.95)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the resampling (default: 0)")


def check_statistics_options(options: argparse.Namespace) -> None:
    """ValueError for numbers out of bounds, or code that nothing would run."""
    if not 0.5 <= options.confidence < 1.0:
        raise ValueError(f"--confidence {options.confidence}: give a number from 0.5 to below 1, as 0.95")
    if options.batch_size < 1:
        raise ValueError(f"--batch-size {options.batch_size}: give 1 or more")
    if options.seed < 0:
        raise ValueError(f"--seed {options.seed}: give 0 or more")


def check_price(per_hour: float | None) -> None:
    """ValueError for a price that is no number above 0."""
    if per_hour is not None and not 0.0 < per_hour < math.inf:
        raise ValueError(f"--price-per-hour {per_hour}: give a number above 0, in any currency")


def refuse_ignored(
    parser: argparse.ArgumentParser, options: argparse.Namespace, names: Sequence[str], why: str
) -> None:
    """ValueError for the first of these options that has another value than its default, for nothing reads it."""
    for name in names:
        if getattr(options, name) != parser.get_default(name):
            raise ValueError(f"--{name.replace('_', '-')} would be ignored: {why}")


SAMPLES_AT_ONCE = "it goes with --mix; of a recipe's samples, train.eval_batch_size are asked at once"


def show(blocks: Iterable[Any]) -> None:
    """Print texts and tables, on lines as wide as they need: where there is no terminal, nothing is folded."""
    from rich.console import Console
    from rich.measure import Measurement

    console, blocks = Console(highlight=False, markup=False), list(blocks)
    wide = console.options.update_width(WIDEST)
    needed = [Measurement.get(console, wide, block) for block in blocks]
    widths = [each.minimum if console.is_terminal else each.maximum for each in needed]
    console.width = max([console.width, *widths])
    for block in blocks:
        console.print(block)


def weights(path: Path, options: argparse.Namespace) -> str | None:
    """The hash of a folder's weights for the JSON, by which the registry knows them; of a run there is none."""
    from pat.evaluation.folders import weights_sha256

    return weights_sha256(path) if options.json and (path / "config.json").is_file() else None


def write_json(options: argparse.Namespace, content: Mapping[str, Any]) -> None:
    """What was found, where --json asks for it, with the command that finds it again, without its keys, and the folder
    it ran in."""
    if options.json:
        command = secrets.hidden(options.typed)
        files.write_json(options.json, {**content, "command": command, "directory": os.getcwd()})


def say(options: argparse.Namespace, content: Mapping[str, Any], blocks: Iterable[Any]) -> None:
    """Write what was found, then show it: also where it cannot be written, as on a full disk."""
    try:
        write_json(options, content)
    finally:
        show(blocks)


def folders_and_keys(given: Sequence[str]) -> tuple[list[Path], list[str]]:
    """(folders, key=value) among a command's words. Raises ValueError for a folder that is not there."""
    paths = [Path(item) for item in given if "=" not in item or Path(item).is_dir()]
    for path in paths:
        if path.is_file():
            raise ValueError(
                f"{path} is a file: give runs or Hugging Face folders, prompts by --mix, data by data.eval={path}"
            )
        if not path.is_dir():
            beside = [each.name for each in path.absolute().parent.glob("*") if each.is_dir()]
            raise ValueError(
                f"there is no folder {path}: give runs or Hugging Face folders, such as `pat export` writes"
                f"{did_you_mean(path.name, beside)}"
            )
    return paths, [item for item in given if Path(item) not in paths]


def device(given: str | None) -> str:
    """The device to compute on. ValueError where torch cannot compute there."""
    import torch

    if (given or "").startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {given}: this torch sees no GPU here; leave it out to use the CPU")
    chosen = given or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=chosen).item()
    except (RuntimeError, AssertionError):
        raise ValueError(f"--device {chosen}: torch cannot compute there; give cpu or cuda") from None
    return chosen
