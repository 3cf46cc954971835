"""Whether pruners can work on a model, and beside one another. Checked before DeepSpeed wraps the model.

Every function raises ValueError with a sentence that names the keys to change.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import nn

from pat.pruning import nested
from pat.pruning.calibration.skeleton import stack_of
from pat.pruning.gates import CalibratedGate
from pat.pruning.structures import calibrated
from pat.pruning.structures.pruner import StructurePruner
from pat.pruning.weights.pruner import WeightPruner
from pat.schema import PeftConfig


def check_weights(
    pruner: WeightPruner,
    owner: Mapping[str, str],  # parameter -> the weight pruner before this one that takes it
    frozen: Collection[str],
) -> None:
    """Whether the matrices of a weight pruner train, and are no other's."""
    for param in pruner.shapes:
        if param in owner:
            raise ValueError(
                f"pruners.{pruner.name} and pruners.{owner[param]} both take {param}; narrow params or exclude of one"
            )
        if param in frozen:
            raise ValueError(
                f"pruners.{pruner.name} takes {param}, which optim.trainable leaves frozen: a mask needs its "
                "gradient; let it train or exclude it"
            )


def check_structures(
    pruner: StructurePruner, before: Sequence[StructurePruner], frozen: Collection[str], peft: PeftConfig
) -> None:
    """Whether the units of a structure pruner can go, and those before it have no gates on the same parameters."""
    if pruner.adapted and pruner.needs == "weights":
        raise ValueError(
            f"pruners.{pruner.name}.gate={pruner.method.name} ranks by trained weights, but with peft the model is "
            "frozen: take one that looks at inputs or gradients: obs, l0, taylor, activation, ..."
        )
    if pruner.adapted and pruner.needs == "inputs" and peft.r is None:
        raise ValueError(
            f"pruners.{pruner.name}.gate={pruner.method.name} fits weights under adapters, of which it must know alpha "
            "and rank: let pat make them (peft=lora), or take a gate that fits nothing: l0, taylor, activation, ..."
        )
    for param in sorted(pruner.units.parameters.intersection(frozen) if not pruner.adapted else ()):
        raise ValueError(
            f"pruners.{pruner.name} prunes units of {param}, which optim.trainable leaves frozen: let it train, "
            "choose other structures, or train adapters instead (peft=lora)"
        )
    if pruner.target_weights == 0:
        raise ValueError(f"pruners.{pruner.name}.budget removes nothing: it leaves {pruner.goal.in_words()}")
    for other in before:
        for structure in set(pruner.config.structures) & set(other.config.structures):
            raise ValueError(f"pruners.{pruner.name} and pruners.{other.name} both have gates on {structure}")
        for param in sorted(pruner.units.parameters & other.units.parameters):
            raise ValueError(
                f"pruners.{pruner.name} and pruners.{other.name} both prune units of {param}: name their "
                "structures in one pruner, so that what goes is counted once"
            )


def check_together(
    weight_pruners: Sequence[WeightPruner], structure_pruners: Sequence[StructurePruner], model: nn.Module
) -> None:
    """Whether weight and structure pruners go together, and calibrated ones find a model that stands still."""
    for weights in weight_pruners:
        if weights.calibration:
            stack_of(model, list(weights.shapes))
            for gates in structure_pruners:
                if weights.timeline.start < gates.timeline.hard_from:
                    _refuse_moving_gates(weights, f"from step {weights.timeline.start} on", gates)
        for structures in structure_pruners:
            nested.check(structures, weights)
    for structures in structure_pruners:
        if isinstance(structures.method, CalibratedGate):
            _check_calibrated_gates(structures, structure_pruners, model)


def _check_calibrated_gates(pruner: StructurePruner, others: Sequence[StructurePruner], model: nn.Module) -> None:
    stack_of(model, calibrated.readers(pruner.anatomy, pruner.sites))
    for site in pruner.sites:
        bias = calibrated.reader(pruner.anatomy, site).bias
        if bias is not None and not model.get_parameter(bias).requires_grad:
            raise ValueError(
                f"pruners.{pruner.name}.gate={pruner.method.name} fits {bias}, which optim.trainable leaves "
                "frozen: let it train"
            )
    at = pruner.timeline.start
    for other in others:
        if other is not pruner and other.timeline.start <= at < other.timeline.hard_from:
            _refuse_moving_gates(pruner, f"at step {at}", other)


def _refuse_moving_gates(pruner: WeightPruner | StructurePruner, when: str, gates: StructurePruner) -> None:
    raise ValueError(
        f"pruners.{pruner.name} is calibrated {when}, when the gates of pruners.{gates.name} still move, until step "
        f"{gates.timeline.hard_from}: set pruners.{pruner.name}.schedule.start to that step or later"
    )
