"""One model's answers to a mix: what passes per slice, which groups fare worse, and what failed."""

from __future__ import annotations

from dataclasses import dataclass

from pat.evaluation import prompts
from pat.evaluation.figures import Figure, figures
from pat.evaluation.groups import Bias, bias
from pat.evaluation.measures import of_answers
from pat.evaluation.models import Loaded
from pat.prompts.mix import Mix


@dataclass(frozen=True)
class Failure:
    """A prompt whose checks do not all pass."""

    id: str
    slices: tuple[str, ...]
    prompt: str
    output: str
    why: str


@dataclass(frozen=True)
class MixEvaluation:
    """What `pat evaluate --mix` says of one model."""

    folder: str
    data: str
    prompts: int
    figures: list[Figure]
    bias: list[Bias]
    failures: list[Failure]


def evaluate(
    mix: Mix, one: Loaded, device: str, batch_size: int = 8, confidence: float = 0.95, seed: int = 0
) -> MixEvaluation:
    """All figures of a model on a mix. Raises ValueError for prompts that it cannot be asked."""
    answers = prompts.ask(mix, one, device, batch_size)
    measured = of_answers(mix, answers)
    return MixEvaluation(
        folder=str(one.path),
        data=measured.data,
        prompts=measured.count,
        figures=figures(measured, confidence, seed),
        bias=bias(mix, measured, confidence, seed),
        failures=[
            Failure(prompt.id, tuple(prompt.slice_names), prompt.text, answer.output, answer.failure)
            for prompt, answer in zip(mix.prompts, answers, strict=True)
            if answer.failure is not None
        ],
    )
