"""What a run will need: memory, communication, checkpoints, on any number of ranks, without a GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pat.commands._help import command_parser, exit_codes
from pat.common import files
from pat.run.directory import ExitCode

EXAMPLES = """\
examples:
  pat plan recipe=llama3_8b                                     as the recipe says
  pat plan recipe=llama3_8b --ranks 8,64,1024 --stages 1,2,3 --disk-gb-per-s 5
  pat plan recipe=llama3_8b --ranks 8 --tflops 400,40,30        how long a step and a calibrated cut take at least
  pat plan recipe=llama3_8b model.path=/models/Llama-3.1-405B --ranks 512,1024 --stages 3 --json plan.json

Only the model's config is read; those of the models that recipes name come with pat. Data and train.num_steps may be
left open. The last lines say whether a rank fits. With other ranks train.micro_batch_size stays where it is given.
Ranks that cannot share train.global_batch_size get as many whole micro-batches as fit in it, at least one each, and a
note says so: `pat train` refuses them.

"""
WIDTH = 140


def main(arguments: Sequence[str]) -> int:
    """`pat plan`."""
    parser = command_parser(
        prog="pat plan",
        usage="pat plan recipe=NAME [key=value ...] [options]",
        description="Bytes per rank of weights, gradients, optimizer, pruner and activations; bytes sent and\n"
        "operations of a step; operations of a calibrated cut; size of a checkpoint and cost of a selection:\n"
        "by arithmetic, from the model's config on the meta device.",
        epilog=EXAMPLES + exit_codes(),
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="a key to change, or GROUP=OPTION")
    parser.add_argument("--ranks", metavar="N,N", help="numbers of ranks to plan for (default: engine.world_size)")
    parser.add_argument("--stages", metavar="0,1,2,3", help="ZeRO stages (default: engine.zero_stage)")
    parser.add_argument(
        "--disk-gb-per-s", type=float, metavar="X", help="write speed of all ranks together, in 10^9 bytes/s"
    )
    parser.add_argument(
        "--tflops",
        metavar="X[,X,X]",
        help="what a card reaches, in 10^12 operations/s: in engine.dtype, fp32 and fp64, the last two for calibrated "
        "cuts (default: as the first)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, too: bytes and operations")
    parser.add_argument("--config-dir", metavar="DIR", help="more groups and recipes: DIR/recipe/NAME.yaml")
    options = parser.parse_intermixed_args(arguments)
    if options.json:
        files.check_writable(options.json, "--json")
    ranks = _numbers("--ranks", options.ranks, 1, 1 << 20)
    stages = _numbers("--stages", options.stages, 0, 3)
    if options.disk_gb_per_s is not None and not options.disk_gb_per_s > 0:
        raise ValueError(f"--disk-gb-per-s {options.disk_gb_per_s:g}: give more than 0")

    pace = _pace(options.tflops)

    def use(config: Any) -> int:
        from rich.console import Console

        from pat.planning.report import report, summary
        from pat.planning.tables import advice, notes, tables, verdicts
        from pat.planning.work import Pace

        needs = report(
            config,
            ranks or [config.engine.world_size],
            stages or [config.engine.zero_stage],
            options.disk_gb_per_s,
            Pace(*pace) if pace else None,
        )
        if options.json:
            files.write_json(options.json, needs.as_dict())
        console = Console()
        console.width = max(console.width, WIDTH)  # of a pipe it is 80
        for table in tables(needs):
            console.print(table)
        for note in notes(needs):
            console.print(note, highlight=False)
        console.print(summary(needs), highlight=False)
        if none_fits := advice(needs):
            console.print(none_fits, highlight=False)
        for verdict in verdicts(needs, _memory_here()):
            console.print(verdict, style="bold", highlight=False)
        return ExitCode.DONE

    from pat.config.compose import compose

    more = ["--config-dir", options.config_dir] if options.config_dir else []
    return compose([*options.overrides, *more], use, data_is_read=False, steps_are_made=False)


def _memory_here() -> int | None:
    """Bytes of this machine's first GPU; None where it has none."""
    import torch

    from pat.zero.engine import accelerator

    return torch.cuda.get_device_properties(0).total_memory if accelerator() == "cuda" else None


def _pace(text: str | None) -> list[float] | None:
    """`400,40,30` as operations a second; a single number counts three times. ValueError for anything else."""
    if text is None:
        return None
    try:
        given = [float(part) * 1e12 for part in text.split(",")]
    except ValueError:
        given = []
    if len(given) not in (1, 3) or not all(0 < each < math.inf for each in given):
        raise ValueError(f"--tflops {text}: give one number above 0, or three separated by commas")
    return given * 3 if len(given) == 1 else given


def _numbers(option: str, text: str | None, low: int, high: int) -> list[int]:
    """`8,64` as numbers. ValueError for anything else, or out of bounds."""
    try:
        numbers = [int(part) for part in text.split(",")] if text else []
    except ValueError:
        numbers = [low - 1]
    if any(not low <= number <= high for number in numbers):
        raise ValueError(f"{option} {text}: give whole numbers from {low} to {high}, separated by commas")
    return numbers
