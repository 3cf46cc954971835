"""The layers of a model from the last to the first: how much the loss feels what each linear map gives.

The walk's own model runs forward once, keeping what goes into each layer, then the loss goes back through one layer
after another, whose forward is repeated for it. No weight has a gradient, and one layer is held at a time, so this is
the same at every ZeRO stage.

# N tokens (padding left out), o outputs and i inputs of a linear map
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pat.common.typed import untyped
from pat.models.experts import Seen, Watched, are_experts, by_module, expert_of, parameter_of
from pat.pruning.calibration.calls import Call
from pat.pruning.calibration.hidden import HiddenStates
from pat.pruning.calibration.needs import no_room_for_gradients
from pat.pruning.calibration.probe import is_of_no_token, not_a_map, per_own_token, per_token
from pat.pruning.calibration.room import Room
from pat.pruning.calibration.statistics import SquaredNorm, is_finite
from pat.pruning.calibration.walk import NotCalibrated, Walk

Loss = Callable[[nn.Module, Any], Tensor]  # of a model for a micro-batch, summed over what it counts
CAUSAL = ("ForCausalLM", "LMHeadModel")  # classes whose loss is of the next token
UNSUPERVISED = -100  # a label that transformers' losses leave out


def own_loss(model: Any, batch: Any) -> Tensor:
    """0-dim: the model's own loss, a mean, times the number of labels that it counts. ValueError for samples without
    labels."""
    check_labels([batch])
    labels = batch["labels"][:, 1:] if type(model).__name__.endswith(CAUSAL) else batch["labels"]  # they are shifted
    count, out = (labels != UNSUPERVISED).sum(), model(**batch)
    return out.loss * count if count else out.logits.sum() * 0.0  # a mean over nothing is NaN


def own_labels(batch: Any) -> int:
    """How many labels of a micro-batch a model's own loss counts, but for the first of a text."""
    return 0 if batch.get("labels") is None else int((batch["labels"] != UNSUPERVISED).sum())


def check_labels(batches: Sequence[Any]) -> None:
    """Raise ValueError for samples of which a model gives no loss."""
    if any(batch.get("labels") is None for batch in batches):
        raise ValueError(
            "criterion.gradient_samples asks for the loss of calibration samples, and these have no labels: see "
            "`samples` of attach and PruningCallback, or set criterion.gradient_samples: 0 and scope: matrix"
        )


@dataclass(frozen=True)
class Squares:
    """Of one linear map, y = W x: means over the tokens of all ranks. The inputs of an expert's map are over those that
    pass it, so that the product of both is the mean over all tokens of what they do to a weight."""

    inputs: Tensor  # (i,) fp64: of x^2
    gradients: Tensor  # (o,) fp64: of (dL/dy)^2


def squares(
    walk: Walk,  # that has not begun; its layers are used up
    batches: Sequence[Any],  # the walk's samples, as the loss takes them
    loss: Loss,
    matrices: Sequence[str],
) -> Iterator[tuple[str, Squares]]:
    """Of each matrix, while its layer is filled: those of the last layer come first. Collective.

    The gradients are those of the labels in the data, as in the empirical Fisher information. Raises NotCalibrated
    where they are not finite, or 0 throughout, and on all ranks where one has no memory.
    """
    both_ways, size = 2 * len(walk.layers), (len(walk.layers) + 1) * walk.hidden.nbytes
    room = Room(walk.comm, lambda: no_room_for_gradients(size))
    inputs = _forward(walk, room)
    gradients = _of_the_top(walk, batches, inputs.pop(), loss, room)
    for index in reversed(range(len(walk.layers))):
        walk.on_layer(both_ways - 1 - index, both_ways)
        own = walk.parameters(index)
        walk.fill(own)
        names = [name for name in matrices if name.startswith(f"{walk.stack}.{index}.")]
        yield from _of_layer(walk, index, names, inputs.pop(), gradients, room)
        walk.drop(own)
    walk.on_layer(both_ways, both_ways)


@torch.no_grad()
def _forward(walk: Walk, room: Room) -> list[HiddenStates]:
    """What goes into each layer, and what comes out of the last, by micro-batch. Collective."""
    kept = [walk.hidden]

    def outputs(index: int) -> HiddenStates:
        return HiddenStates(call(walk.layers[index], h) for call, h in zip(walk.calls[index], kept[-1], strict=True))

    for index in range(len(walk.layers)):
        walk.on_layer(index, 2 * len(walk.layers))
        own = walk.parameters(index)
        walk.fill(own)
        kept.append(room.given(partial(outputs, index)))
        walk.drop(own)
    return kept


def _of_the_top(walk: Walk, batches: Sequence[Any], outputs: HiddenStates, loss: Loss, room: Room) -> HiddenStates:
    """The loss's gradients of what the last layer gives. Collective."""

    def gradients() -> HiddenStates:
        found = HiddenStates()
        for place, (batch, given) in enumerate(zip(batches, outputs, strict=True)):
            last = given.detach().requires_grad_()
            with torch.enable_grad(), _ending_in(walk, place, last):
                found.append(*torch.autograd.grad(loss(walk.skeleton, batch), [last]))
        return found

    outside = [name for name, _ in walk.skeleton.named_parameters() if not name.startswith(f"{walk.stack}.")]
    walk.fill(outside)
    found = room.given(gradients)
    walk.drop(outside)
    return found


def _of_layer(
    walk: Walk,
    index: int,
    names: Sequence[str],
    inputs: HiddenStates,
    gradients: HiddenStates,  # of what the layer gives; becomes that of what goes into it
    room: Room,
) -> Iterator[tuple[str, Squares]]:
    """Collective."""
    layer, sums = walk.layers[index], dict[str, dict[str, Tensor]]()

    def back() -> None:
        for place, call in enumerate(walk.calls[index]):
            entering = inputs[place].detach().requires_grad_()
            here = call.on(entering.device)
            added = {name: sums.setdefault(name, {}) for name in names}
            handles = list(_watched(walk, place, here.given(entering), added))
            try:
                with torch.enable_grad():
                    gradients[place] = torch.autograd.grad(here(layer, entering), [entering], [gradients[place]])[0]
            finally:
                for handle in handles:
                    handle.remove()

    room.given(back)
    for name in names:
        if len(sums[name]) < 2:
            raise NotCalibrated(f"{parameter_of(name)} is not used as a linear map of its own: exclude it")
        x, g = (walk.comm.sum(sums[name][key]) for key in ("inputs", "gradients"))
        own = walk.tokens if expert_of(name) is None else int(walk.comm.sum(sums[name]["tokens"]))
        x, g = x.div_(max(1, own)), g.div_(walk.tokens)
        if not is_finite(x) or not is_finite(g):
            raise NotCalibrated(
                f"The loss's gradient of what {name} gives is not finite on the calibration samples: the model has "
                "diverged, or overflows in engine.dtype"
            )
        if expert_of(name) is None and not bool((g > 0).any()):
            raise NotCalibrated(
                f"The loss does not depend on what {name} gives, on the samples whose gradients were taken: take more "
                "(criterion.gradient_samples), or none (0, and scope: matrix)"
            )
        yield name, Squares(x, g)


def _watched(walk: Walk, place: int, given: Collection[int], sums: Mapping[str, dict[str, Tensor]]) -> Iterator[Any]:
    """Handles of hooks that add up what linear maps see of a micro-batch, forward and back."""
    real = walk.real[place].reshape(-1)

    def add(name: str, key: str, values: Tensor) -> None:
        sums[name][key] = SquaredNorm.add(sums[name].get(key), values)

    def forward(name: str, module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
        if is_of_no_token(args[0], given):
            return  # what a matrix gives of these counts as what it gives of tokens
        if not isinstance(output, Tensor) or not output.requires_grad:
            raise not_a_map(name)
        see(name, args[0], output, partial(per_token, name, real=real))

    def of_expert(seen: Seen) -> None:
        if seen.name in sums:
            counted = partial(per_own_token, seen, real=real)
            add(seen.name, "tokens", counted(seen.inputs.new_ones(len(seen.inputs), 1)))
            see(seen.name, seen.inputs, seen.output, counted)

    def see(name: str, inputs: Tensor, output: Tensor, counted: Callable[[Tensor], Tensor]) -> None:
        add(name, "inputs", counted(inputs.detach()))
        untyped(output).register_hook(partial(back, name, counted))

    def back(name: str, counted: Callable[[Tensor], Tensor], gradient: Tensor) -> None:
        add(name, "gradients", counted(gradient))

    for path, names in by_module(sums).items():
        module = walk.skeleton.get_submodule(path)
        if are_experts(module):
            yield Watched(module, path, of_expert)
        else:
            yield module.register_forward_hook(partial(forward, names[0]))


@contextmanager
def _ending_in(walk: Walk, place: int, last: Tensor) -> Generator[None]:
    """Inside it the layers do nothing, and the last one gives `last`, for the micro-batch at this place."""

    def stub(call: Call) -> Callable[..., Any]:
        return lambda *args, **kwargs: call.returned(last)

    for layer, calls in zip(walk.layers, walk.calls, strict=True):
        layer.forward = stub(calls[place])
    try:
        yield
    finally:
        for layer in walk.layers:
            del layer.forward
