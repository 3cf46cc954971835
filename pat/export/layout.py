"""How stock files name and cut a model's tensors.

transformers 5 renames tensors as it loads a folder, and fuses those of experts; `save_pretrained` undoes this, so that
servers and transformers 4 find the names of the hub. Here its reversal runs on tensors without data: whatever it makes
is a view of one of the model's tensors, so that an export can still be streamed, and be read back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers.core_model_loading import revert_weight_conversion

from pat.export.writer import Spec


@dataclass(frozen=True)
class View:
    """A tensor of the files as a part of one of the model's, in its row-major elements."""

    name: str  # in the files
    source: str  # in the model
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0
    whole: bool = False  # it is all of the source, in the same order

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def contiguous(self) -> bool:
        """Whether it is one range of the source's elements."""
        return torch.empty(0, device="meta").as_strided(self.shape, self.stride).is_contiguous()

    def of(self, source: Tensor) -> Tensor:
        """The part of the source; of a contiguous one, the part itself."""
        return source.contiguous().as_strided(self.shape, self.stride, self.offset)


@dataclass(frozen=True)
class Layout:
    """The tensors that have another name or shape in the files; all others are there as they are."""

    views: Mapping[str, View] = field(default_factory=dict)  # by name in the files
    reason: str | None = None  # why the files have the model's own names, where they should not

    @cached_property
    def sources(self) -> Mapping[str, list[View]]:
        """The views that make up each of the model's tensors."""
        found: dict[str, list[View]] = {}
        for view in self.views.values():
            found.setdefault(view.source, []).append(view)
        return found

    def view(self, spec: Spec) -> View:
        """What a tensor of the files is."""
        return self.views.get(spec.name) or _whole(spec.name, spec.name, spec.shape)

    def parts(self, source: str, shape: Iterable[int]) -> list[View]:
        """The tensors of the files that make up one of the model's."""
        return self.sources.get(source) or [_whole(source, source, tuple(shape))]

    def specs(self, own: Iterable[Spec]) -> list[Spec]:
        """The tensors of the files, of the model's own."""
        return [Spec(v.name, v.shape, spec.dtype) for spec in own for v in self.parts(spec.name, spec.shape)]


def layout(
    model: Any,  # of transformers, on any device: its class and config count
    shapes: Mapping[str, tuple[int, ...]],  # of all parameters, tied ones once, and persistent buffers
) -> Layout:
    """Where `save_pretrained` puts each tensor; with a reason, nowhere else, where it does not make views of them."""
    given = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    names = {_storage(tensor): name for name, tensor in given.items()}
    try:
        with _Uncopied():
            written = revert_weight_conversion(model, dict(given))
    except Exception as error:
        return Layout(reason=_reason(model, (str(error).strip() or type(error).__name__).splitlines()[0]))
    views: dict[str, View] = {}
    count = dict.fromkeys(shapes, 0)
    for name, tensor in written.items():
        source = names.get(_storage(tensor))
        if source is None:
            return Layout(reason=_reason(model, f"{name} is no part of one tensor"))
        count[source] += tensor.numel()
        if name != source or tensor.shape != given[source].shape or tensor.stride() != given[source].stride():
            shape, stride, offset = tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())
            in_order = tensor.numel() == given[source].numel() and tensor.is_contiguous()
            views[name] = View(name, source, shape, stride, offset, in_order)
    for name, tensor in given.items():
        if count[name] != tensor.numel():
            return Layout(
                reason=_reason(model, f"of the {tensor.numel():,} elements of {name}, it keeps {count[name]:,}")
            )
    return Layout(views)


class _Uncopied(TorchFunctionMode):
    """What would be copied to be contiguous remains a view."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is Tensor.contiguous else func(*args, **(kwargs or {}))


def _whole(name: str, source: str, shape: tuple[int, ...]) -> View:
    return View(name, source, shape, torch.empty(shape, device="meta").stride(), whole=True)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _reason(model: Any, why: str) -> str:
    return (
        f"the tensors have their names in {type(model).__name__}, as those of the hub cannot be streamed ({why}): for "
        "a server that needs those, load the folder and `save_pretrained` it"
    )
