"""What a calibrated pruner measures, for whoever binds, announces or plans it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from pat.common.text import size_in_words
from pat.models.experts import expert_of
from pat.pruning.calibration.statistics import Gram, InputStatistic


def nothing(*sizes: int) -> int:
    """What a cut takes that only ranks by what was measured."""
    return 0


@dataclass(frozen=True)
class Needs:
    """What one calibrated pruner measures on calibration samples, and what its cuts hold in memory."""

    key: str  # of its method: pruners.NAME.criterion
    num_samples: int
    shapes: Mapping[str, tuple[int, ...]]  # (outputs, inputs) of the linear maps whose inputs are measured, in order
    statistics: tuple[type[InputStatistic], ...]  # of each
    cut_bytes: Callable[[int, int], int]  # (outputs, inputs) -> what one cut holds beside the statistics
    cut_flops: Callable[[int, int], float] = nothing  # (outputs, inputs) -> floating-point operations of one cut
    follows: bool = False  # whether the model before the cut is walked along
    passes: int = 0  # over the samples, in which each layer is then fitted to what it gave there
    layers: int = 0  # times that a layer's weights are held during its cuts, up to the last of them
    back: int = 0  # samples through which the loss's gradients go back, layer by layer,
    labels: int = 0  # and more of `num_samples`, until so many labels are in them
    once: bool = False  # whether it is measured for the first selection only
    routed: float = 1.0  # the share of the tokens that an expert sees, on average

    @property
    def widest(self) -> str:
        """The linear map with the most inputs for the tokens that it sees."""
        return max(self.shapes, key=lambda name: self.shapes[name][1] / self.seen_by(name))

    def seen_by(self, name: str) -> float:
        """The share of the tokens that go into a linear map."""
        return 1.0 if expert_of(name) is None else self.routed

    def gradient_samples(self, labels: int) -> int:
        """Through how many samples of so many labels each the loss's gradients go back."""
        return min(self.num_samples, max(self.back, math.ceil(self.labels / labels))) if self.back else 0

    def too_few(self, tokens: int) -> str | None:
        """What to say where so many tokens leave a Gram matrix without full rank; None where they are enough."""
        inputs, seen = self.shapes[self.widest][1], int(tokens * self.seen_by(self.widest))
        if Gram not in self.statistics or seen >= inputs:
            return None
        see = "" if seen == tokens else f", of which an expert sees {seen:,} on average"
        return (
            f"{self.key} is calibrated on {tokens:,} tokens{see}, fewer than the {inputs:,} inputs of {self.widest}: "
            f"only its damping makes the cut unique; give more samples ({self.key}.num_samples) or longer ones"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether that is why it was raised: on CPUs torch raises a RuntimeError like any other."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def no_room(layer: str, num_bytes: int) -> str:
    """What to say where a rank has no memory for what goes into a layer's matrices."""
    return (
        f"this rank has no memory to measure what goes into the matrices of {layer}: that takes up to "
        f"{size_in_words(num_bytes)} beside the layer; leave wide matrices out "
        "(exclude), free memory (engine.zero_stage=3, engine.offload_optimizer=true), take fewer or shorter samples "
        "(num_samples, data.max_length), or a method that needs next to none (wanda; of structures: activation)"
    )


def no_room_for_gradients(num_bytes: int) -> str:
    """What to say where a rank has no memory to take the loss's gradients."""
    return (
        "this rank has no memory to take the loss's gradients before the cut: what goes into each layer takes "
        f"{size_in_words(num_bytes)} of the host's memory, and the device has to hold a layer, its gradients and the "
        "logits of a micro-batch; take fewer samples "
        "(criterion.gradient_samples), or none (criterion.gradient_samples: 0, with scope: matrix), shorter ones or "
        "fewer at once (data.max_length, train.micro_batch_size), or free memory (engine.zero_stage=3, "
        "engine.offload_optimizer=true)"
    )


def no_room_to_fit(layer: str, num_bytes: int) -> str:
    """What to say where a rank has no memory to fit a layer after its cut."""
    return (
        f"this rank has no memory to fit {layer} after its cut: that takes about {size_in_words(num_bytes)} beside the "
        "layer and what the backward of a micro-batch keeps; leave it out "
        "(criterion.reconstruct: 0; of structures gate.reconstruct: 0), take shorter samples or fewer at once "
        "(data.max_length, train.micro_batch_size), or free memory (engine.zero_stage=3, "
        "engine.offload_optimizer=true)"
    )


def too_large(matrix: str, method: str, num_bytes: int) -> str:
    """What to say where a rank has no memory for a cut."""
    return (
        f"{matrix} is too large for {method} on this rank: its cut takes about {size_in_words(num_bytes)} beside "
        "training; leave it out (exclude), free memory (engine.zero_stage=3, engine.offload_optimizer=true), or take a "
        "method that needs next to none (wanda; of structures: activation)"
    )
