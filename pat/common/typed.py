"""Typed wrappers where torch's annotations and isinstance leave types open. Values are unchanged, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeGuard, TypeVar

import torch
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")


def ints(values: Tensor) -> list[int]:
    """The numbers of (n,) whole numbers."""
    return untyped(values).tolist()


def floats(values: Tensor) -> list[float]:
    """The numbers of (n,) floating point."""
    return untyped(values).tolist()


def split(values: Tensor, sizes: int | Sequence[int]) -> tuple[Tensor, ...]:
    """Views of consecutive parts along the first dimension: of these sizes, or of one and a last one that is left."""
    return untyped(values).split(sizes)


def unflatten(values: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """The same with one dimension as several."""
    return untyped(values).unflatten(dim, sizes)


def solve(matrix: Tensor, values: Tensor) -> Tensor:
    """(d, n) matrix^-1 values, of (d, d) and (d, n)."""
    return untyped(torch).linalg.solve(matrix, values)


def of_numpy(values: Any) -> Tensor:
    """A tensor in the memory of a numpy array."""
    return untyped(torch).from_numpy(values)


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """A model's modules with their names."""
    yield from untyped(model).named_modules()


def compiled(function: Callable[P, R], options: Mapping[str, Any]) -> Callable[P, R]:
    """The function compiled whole, for tensors of any length; compiling happens when it is first called."""
    return untyped(torch).compile(function, dynamic=True, fullgraph=True, options=options)


def repeats_a_forward() -> bool:
    """Whether a backward is running, so that a forward is one that activation checkpointing repeats."""
    return untyped(torch)._C._current_graph_task_id() != -1


def is_mapping(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether a setting is a mapping of keys."""
    return isinstance(value, Mapping)


def untyped(value: Any) -> Any:
    """The same object without a type, whose results are annotated by the caller."""
    return value
