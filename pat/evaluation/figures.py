"""Figures of one model with intervals, over all and per slice, as they are printed and written."""

from __future__ import annotations

from dataclasses import dataclass

from pat.evaluation.measures import Measured, estimate
from pat.evaluation.samples import OF_LABEL
from pat.statistics.estimates import Estimate


@dataclass(frozen=True)
class Figure:
    """A measure with its intervals."""

    name: str
    higher_is_better: bool
    overall: Estimate
    slices: dict[str, Estimate]  # those in which a sample or prompt has it


def figures(measured: Measured, confidence: float = 0.95, seed: int = 0) -> list[Figure]:
    """Every measure of a model."""
    made = []
    for measure in measured.measures.values():
        places = {
            name: measure.places(numbers)
            for name, numbers in measured.slices.items()
            if not (measure.over_classes and name.startswith(OF_LABEL))
        }
        made.append(
            Figure(
                measure.name,
                measure.higher_is_better,
                estimate(measure, measure.places(), confidence, seed),
                {name: estimate(measure, each, confidence, seed) for name, each in places.items() if each.size},
            )
        )
    return made
