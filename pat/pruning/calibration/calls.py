"""How a model calls its layers: noted in its own forward, for as often as a layer is wanted."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

SEEN_BY_THE_BASE = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


@dataclass(frozen=True)
class Call:
    """How the model calls a layer for one micro-batch; the hidden states are given apart."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    by_name: bool  # the hidden states are a keyword's value

    def __call__(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """The layer's output."""
        if self.by_name:
            return _first(layer(*self.args, **self.kwargs | {"hidden_states": hidden}))
        return _first(layer(hidden, *self.args, **self.kwargs))


@contextmanager
def recording(layers: Sequence[Any], calls: list[list[Call]], hidden: list[Tensor]) -> Generator[None]:
    """Inside it a layer returns its hidden states unchanged; how it was called is noted."""

    def stub(index: int) -> Callable[..., Tensor]:
        def forward(*args: Any, **kwargs: Any) -> Tensor:
            by_name = not args
            states = kwargs.pop("hidden_states") if by_name else args[0]
            calls[index].append(Call(args[1:], kwargs, by_name))
            if index == 0:
                hidden.append(states)
            return states

        return forward

    for index, layer in enumerate(layers):
        layer.forward = stub(index)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def inputs_of(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What the base model sees. Packed documents are kept apart by their positions, which a mask would undo."""
    packed = "cu_seq_lens" in batch
    return {key: batch[key] for key in SEEN_BY_THE_BASE if key in batch and not (packed and key == "attention_mask")}


def without_cache(base: Any) -> dict[str, Any]:
    """The arguments with which a base model keeps no keys and values."""
    return {"use_cache": False} if hasattr(base.config, "use_cache") else {}


def _first(output: Any) -> Tensor:
    """A layer's hidden states, which may come with more."""
    return cast(Any, output)[0] if isinstance(output, tuple) else output
