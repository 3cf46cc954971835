"""The parts of `--help` that commands share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from pat.run.directory import ExitCode


def command_parser(**options: Any) -> argparse.ArgumentParser:
    """An ArgumentParser that keeps the lines of its texts and takes no half-written options."""
    return argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)


def _listed(codes: Mapping[ExitCode, str]) -> str:
    return "\n".join(["exit codes:", *(f"  {code:<4} {meaning}" for code, meaning in sorted(codes.items()))])


_OF_VERDICTS = (ExitCode.OUTSIDE_ENVELOPE, ExitCode.ALERT)
EXIT_CODES = _listed({code: code.meaning for code in ExitCode})
SEARCH_EXIT_CODES = _listed({code: code.meaning for code in ExitCode if code != ExitCode.ALERT})
RUN_EXIT_CODES = f"""\
{_listed({code: code.meaning for code in ExitCode if code not in _OF_VERDICTS})}
  RUN/exit.json holds the same code once ranks have started: launchers such as torchrun replace it with their own."""


def exit_codes(more: Mapping[ExitCode, str] | None = None) -> str:
    """The exit codes of a command that trains nothing; `more` adds those that only it has."""
    codes = {
        ExitCode.DONE: ExitCode.DONE.meaning,
        ExitCode.ERROR: "unexpected error",
        ExitCode.BAD_INPUT: ExitCode.BAD_INPUT.meaning,
        ExitCode.INTERRUPTED: "Ctrl-C",
    }
    return _listed({**codes, **(more or {})})


EXAMPLES = """\
examples:
  pat train recipe=parity                 train and prune: the recipe `parity` is a tiny model on generated text
  pat export runs/parity --out pruned     what came out, as a Hugging Face folder
  pat plan recipe=llama3_8b --ranks 8,64  what it needs on so many GPUs, found without one
  pat sweep recipe=parity seed=0,1,2      many runs, one table and one picture
  pat train --help                        recipes, keys and methods

"""
TRAIN_HELP = """\
Fine-tune a model and prune it while it trains.

A recipe is a complete run; key=value changes parts of it. `pat train --keys WORD` describes
keys and methods, as --keys lr, --keys alps, --keys pruners.NAME.schedule; the general ones stand in
{config}

recipes (recipes/NAME.yaml):
  {recipes}
  more with --config-dir DIR: DIR/recipe/NAME.yaml

groups (GROUP=OPTION picks a set of keys):
{groups}

methods of a pruner: pruners.NAME.KIND.name=METHOD, such as pruners.weights.schedule.name=cubic
(criterion and granularity are of single weights, gate is of structures):
{methods}

structures (pruners.NAME.structures=[...]):
  {structures}
"""

TRAIN_EXAMPLES = """\
examples:
  pat train recipe=parity run.dir=/data/run1
  pat train --recipe parity engine.zero_stage=3 seed=1 pruners.weights.budget.sparsity=0.5
  pat train recipe=parity pruners.weights.criterion.name=magnitude --dry-run
  pat train -m recipe=parity seed=0,1,2                 one run after another
  pat train recipe=NAME engine.hostfile=FILE            several machines by ssh: lines `HOST slots=N`
  torchrun --nproc-per-node 8 -m pat train recipe=parity     each process becomes a rank; so with
  srun pat train recipe=parity                          deepspeed and srun, on several machines

The run directory is runs/NAME, NAME made of the recipe and the changed keys, unless run.dir or run.name say
otherwise. The same command goes on from the newest whole checkpoint (run.resume=auto); ranks and ZeRO stage may differ.

"""
