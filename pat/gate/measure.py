"""What the gate measures, one model after another."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch

from pat.envelope.figures import MIX, MODEL, PROFILE, SAMPLES, figures
from pat.envelope.spec import Envelope
from pat.evaluation import prompts, samples
from pat.evaluation.folders import Size, size_of, weights_sha256
from pat.evaluation.measures import Measured, of_answers, of_rows
from pat.evaluation.models import opened
from pat.models.tokenizers import tokenizer_digest
from pat.prompts.mix import Mix
from pat.schema import Config
from pat.tasks import base
from pat.tasks.base import Task


@dataclass(frozen=True)
class Asked:
    """Where figures come from."""

    config: Config | None  # whose evaluation samples; None: no figure needs any
    mix: Mix | None
    dtype: torch.dtype
    device: str
    batch_size: int


@dataclass(frozen=True)
class Facts:
    """What is known of one model."""

    folder: Path
    weights_sha256: str
    task: Task
    tokenizer: str  # its digest
    size: Size
    sources: dict[str, Measured]  # of SAMPLES and MIX, those that were measured
    step: int | None = None  # of the checkpoint; None: the folder does not say


def needs_samples(envelope: Envelope, with_mix: bool) -> bool:
    """Whether a limit is on a figure that only a recipe's samples have; of those that a mix has, too, without one."""
    sources = [figures()[name].sources for name in envelope.limits]
    sources += [(SAMPLES, MIX)] if envelope.slices is not None else []
    return any(SAMPLES in each and not (MIX in each and with_mix) for each in sources)


def needs_mix(envelope: Envelope) -> bool:
    """Whether a limit can be on a figure of a mix."""
    return envelope.slices is not None or any(MIX in figures()[name].sources for name in envelope.limits)


def check_measured(envelope: Envelope, given: Collection[str], with_baseline: bool) -> None:
    """ValueError for a limit that nothing measures; `given`: SAMPLES, MIX and PROFILE as far as they are asked."""
    options = {SAMPLES: "recipe=NAME", MIX: "--mix FILE", PROFILE: "--profile FILE"}
    missing: list[str] = []
    for name in envelope.limits:
        sources = figures()[name].sources
        if MODEL not in sources and not set(sources) & set(given):
            missing.append(
                f"{name} is limited, but not measured: give {' or '.join(options[each] for each in sources)}"
            )
    relative = envelope.relative()
    if relative and not with_baseline:
        missing.append(f"{relative[0]} is against a baseline: give --against FOLDER")
    if missing:
        raise ValueError("; ".join(missing))


def ask(path: Path, asked: Asked, task: Task | None = None) -> Facts:
    """The model in a folder, or of a run's best checkpoint; `task`: what it must be for. Raises ValueError."""
    config = asked.config
    if config is not None:
        samples.check_files(config)
        task = base.build(config.task)
    with opened(path, task, asked.dtype, asked.device) as one:
        sources: dict[str, Measured] = {}
        if config is not None:
            rows, _ = samples.ask(config, one.model, one.tokenizer, str(path), asked.device, one.said)
            sources[SAMPLES] = of_rows(rows)
        if asked.mix is not None:
            answers = prompts.ask(asked.mix, one, asked.device, asked.batch_size)
            sources[MIX] = of_answers(asked.mix, answers)
        digest = tokenizer_digest(one.tokenizer)
        return Facts(path, weights_sha256(one.folder), one.task, digest, size_of(one), sources, one.step)
