"""How a model calls its layers: noted in its own forward, for as often as a layer is wanted."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from pat.common.typed import untyped
from pat.models.experts import are_experts
from pat.pruning.calibration.hidden import HOST, HiddenStates
from pat.tasks.packing import kept_apart

SEEN_BY_THE_BASE = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


OTHERWISE = (
    "take a method without calibration (pruners.NAME.criterion.name=magnitude, or of structures "
    "pruners.NAME.gate.name=taylor)"
)


class NotCalibrated(ValueError):
    """The inputs of a matrix cannot be measured."""


@dataclass(frozen=True)
class Call:
    """How the model calls a layer for one micro-batch; the hidden states are given apart. What it is called with, such
    as the masks of padded rows, waits in the host's memory."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    by_name: bool  # the hidden states are a keyword's value
    beside: tuple[Any, ...] | None  # what the layer returns behind its hidden states; None: it returns these alone

    def __call__(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """The layer's output."""
        here = self.on(hidden.device)
        if self.by_name:
            return _first(layer(*here.args, **here.kwargs | {"hidden_states": hidden}))
        return _first(layer(hidden, *here.args, **here.kwargs))

    def on(self, device: torch.device) -> Call:
        """The same call with its tensors on the device."""
        return replace(self, args=_moved(self.args, device), kwargs=_moved(self.kwargs, device))

    def given(self, hidden: Tensor) -> frozenset[int]:
        """The memory of the tensors that the layer is given besides these hidden states: what is a view of one, such as
        the embeddings of relative positions, is of no token."""
        return frozenset(map(_memory, _tensors((self.args, self.kwargs)))) - {_memory(hidden), 0}

    def returned(self, hidden: Tensor) -> Any:
        """These hidden states, as the model expects them of the layer."""
        return hidden if self.beside is None else (hidden, *self.beside)


@contextmanager
def recording(
    layers: Sequence[Any],
    calls: list[list[Call]],
    hidden: HiddenStates,
    batches: Sequence[Tensor],  # (B, T), in the order in which they will come
) -> Generator[None]:
    """Inside it a layer returns its hidden states unchanged, and the rest of what it returns without numbers; how it
    was called is noted. Raises NotCalibrated where more than the hidden states goes on into the next layer, or where
    these are not of the batch's tokens."""
    beside: dict[type, tuple[Any, ...] | None] = {}
    entered: list[Tensor] = []  # [hidden states of this micro-batch]
    on_host: dict[int, tuple[Tensor, Tensor]] = {}  # what its layers share, with what became of it

    def stub(index: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            by_name, layer = not args, layers[index]
            if type(layer) not in beside:
                beside[type(layer)] = _beside(layer, args, kwargs)
            states = kwargs.pop("hidden_states") if by_name else args[0]
            if index == 0:
                on_host.clear()
            more, named = _moved((args[1:], kwargs), HOST, on_host)
            calls[index].append(Call(more, named, by_name, beside[type(layer)]))
            if index == 0:
                batch = batches[min(len(hidden), len(batches) - 1)]
                if states.dim() > 2 and states.shape[:2] != batch.shape:
                    raise NotCalibrated(
                        f"The layers get hidden states of shape {tuple(states.shape)} for {tuple(batch.shape)} tokens, "
                        f"so it cannot be told which are padding: {OTHERWISE}"
                    )
                hidden.append(states)
                entered[:] = [states]
            elif _is_on_meta((args, kwargs)) or not (states is entered[0] or torch.equal(states, entered[0])):
                raise NotCalibrated(
                    f"Layer {index} gets more, or something else, than the hidden states of layer {index - 1}, so the "
                    f"layers cannot be calibrated one by one: {OTHERWISE}"
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
    """What a layer returns behind its hidden states, without numbers: from its own forward on the meta device, or,
    where that looks at numbers, on the CPU with weights of 0. None where neither runs."""
    own = untyped(layer.__class__).forward  # not the stub
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    numbers_for_little = not any(are_experts(module) for module in layer.modules())  # all of them would compute
    for device in ("meta", "cpu") if numbers_for_little else ("meta",):
        with suppress(Exception), torch.device(device), torch.no_grad():  # it may fail anywhere in there
            alike = _of_zeros(copy.deepcopy(layer).to("meta", states.dtype), device)
            output = own(alike, *_moved(args, device), **_moved(kwargs, device))
            return _moved(untyped(output)[1:], "meta") if isinstance(output, tuple | list) else None
    return None


def _of_zeros(layer: nn.Module, device: str) -> nn.Module:
    """The layer, from the meta device, with zeros that take no memory."""
    for module in layer.modules():
        for name, param in module.named_parameters(recurse=False):
            zeros = torch.zeros((), dtype=param.dtype, device=device).expand(param.shape)
            setattr(module, name, nn.Parameter(zeros, requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.zeros((), dtype=buffer.dtype, device=device).expand(buffer.shape))
    return layer


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _moved(value: Any, device: str | torch.device, known: dict[int, tuple[Tensor, Tensor]] | None = None) -> Any:
    """The same with its tensors on a device; one that is `known` is moved once."""
    if isinstance(value, Tensor):
        if known is None:
            return value.to(device)
        return known.setdefault(id(value), (value, value if value.is_meta else value.to(device)))[1]
    if isinstance(value, dict):
        return {key: _moved(each, device, known) for key, each in cast(dict[Any, Any], value).items()}
    if isinstance(value, tuple | list):
        return tuple(_moved(each, device, known) for each in cast(Sequence[Any], value))
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in it."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for each in cast(dict[Any, Any], value).values():
            yield from _tensors(each)
    elif isinstance(value, tuple | list):
        for each in cast(Sequence[Any], value):
            yield from _tensors(each)


def _is_on_meta(value: Any) -> bool:
    """Whether a tensor in it has no numbers."""
    return any(tensor.is_meta for tensor in _tensors(value))


def _first(output: Any) -> Tensor:
    """A layer's hidden states, which may come with more."""
    return cast(Any, output)[0] if isinstance(output, tuple | list) else output
