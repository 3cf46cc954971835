"""How a model calls its layers: noted in its own forward, for as often as a layer is wanted."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from pat.common.typed import untyped
from pat.tasks.packing import kept_apart

SEEN_BY_THE_BASE = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


class NotCalibrated(ValueError):
    """The inputs of a matrix cannot be measured."""


@dataclass(frozen=True)
class Call:
    """How the model calls a layer for one micro-batch; the hidden states are given apart."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    by_name: bool  # the hidden states are a keyword's value
    beside: tuple[Any, ...] | None  # what the layer returns behind its hidden states; None: it returns these alone

    def __call__(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """The layer's output."""
        if self.by_name:
            return _first(layer(*self.args, **self.kwargs | {"hidden_states": hidden}))
        return _first(layer(hidden, *self.args, **self.kwargs))

    def returned(self, hidden: Tensor) -> Any:
        """These hidden states, as the model expects them of the layer."""
        return hidden if self.beside is None else (hidden, *self.beside)


@contextmanager
def recording(layers: Sequence[Any], calls: list[list[Call]], hidden: list[Tensor]) -> Generator[None]:
    """Inside it a layer returns its hidden states unchanged, and the rest of what it returns without numbers; how it
    was called is noted. Raises NotCalibrated where more than the hidden states goes on into the next layer."""
    beside: dict[type, tuple[Any, ...] | None] = {}

    def stub(index: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            by_name, layer = not args, layers[index]
            if type(layer) not in beside:
                beside[type(layer)] = _beside(layer, args, kwargs)
            states = kwargs.pop("hidden_states") if by_name else args[0]
            calls[index].append(Call(args[1:], kwargs, by_name, beside[type(layer)]))
            if index == 0:
                hidden.append(states)
            elif _is_on_meta((args, kwargs)) or not (states is hidden[-1] or torch.equal(states, hidden[-1])):
                raise NotCalibrated(
                    f"Layer {index} gets more, or something else, than the hidden states of layer {index - 1}, so the "
                    "layers cannot be calibrated one by one: take a method without calibration (magnitude, movement, "
                    "taylor)"
                )
            return calls[index][-1].returned(states)

        return forward

    for index, layer in enumerate(layers):
        layer.forward = stub(index)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def inputs_of(batch: Mapping[str, Any], base: Any) -> dict[str, Any]:
    """What the base model sees. Packed documents are kept apart by their positions, which a mask would undo."""
    ends = batch.get("cu_seq_lens")
    seen = {key: batch[key] for key in SEEN_BY_THE_BASE if key in batch and (ends is None or key != "attention_mask")}
    return seen if ends is None else seen | kept_apart(base.config, ends, batch["input_ids"].shape[1])


def without_cache(base: Any) -> dict[str, Any]:
    """The arguments with which a base model keeps no keys and values."""
    return {"use_cache": False} if hasattr(base.config, "use_cache") else {}


def _beside(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
    """What a layer returns behind its hidden states, from its own forward on the meta device, where that can run."""
    with suppress(Exception), torch.device("meta"):  # a forward that looks at numbers may fail anywhere in there
        own = untyped(layer.__class__).forward  # not the stub
        output = own(copy.deepcopy(layer).to("meta"), *_on_meta(args), **_on_meta(kwargs))
        return untyped(output)[1:] if isinstance(output, tuple) else None
    return None


def _on_meta(value: Any) -> Any:
    """The same without numbers in its tensors."""
    if isinstance(value, Tensor):
        return value.to("meta")
    if isinstance(value, dict):
        return {key: _on_meta(each) for key, each in cast(dict[Any, Any], value).items()}
    if isinstance(value, tuple | list):
        return tuple(_on_meta(each) for each in cast(Sequence[Any], value))
    return value


def _is_on_meta(value: Any) -> bool:
    """Whether a tensor in it has no numbers."""
    if isinstance(value, dict):
        return any(map(_is_on_meta, cast(dict[Any, Any], value).values()))
    if isinstance(value, tuple | list):
        return any(map(_is_on_meta, cast(Sequence[Any], value)))
    return isinstance(value, Tensor) and value.is_meta


def _first(output: Any) -> Tensor:
    """A layer's hidden states, which may come with more."""
    return cast(Any, output)[0] if isinstance(output, tuple) else output
