"""Mixtures of experts whose matrices transformers keeps in one parameter: a linear map for each expert, by name.

Expert 3 of `layers.0.mlp.experts.down_proj` is the map `layers.0.mlp.experts.down_proj[3]`.

# E experts, T tokens, k experts of each, S those that one expert sees, o outputs and i inputs of a linear map
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

NUMBERS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")  # how configs call E, and k
PASSED = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
_TOLD = ("has_gate", "has_bias", "is_transposed")  # of themselves, by classes with transformers' interface of experts
_MAP = re.compile(r"(.+)\[(\d+)\]")


@dataclass(frozen=True)
class Seen:
    """What one expert's linear map does in a forward."""

    name: str  # of the map
    tokens: Tensor  # (S,) indices of the module's
    num_tokens: int  # T
    inputs: Tensor  # (S, i)
    output: Tensor  # (S, o)


def are_experts(module: nn.Module) -> bool:
    """Whether the forward of these experts is one of transformers' interface, so that `Watched` sees each of them."""
    return all(hasattr(module, told) for told in _TOLD) and bool(leaves(module))


def leaves(module: Any) -> list[str]:
    """The parameters (E, ...) of a module of experts that its forward multiplies by, in its order."""
    names = ("gate_up_proj" if module.has_gate else "up_proj", "down_proj")
    held: Mapping[str, Any] = dict(module.named_parameters(recurse=False))
    return list(names) if all(name in held for name in names) else []


def maps(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The linear maps (o, i) of a parameter: itself, or of (E, o, i) each expert's."""
    if len(shape) != 3:
        return {name: shape}
    return {f"{name}[{expert}]": shape[1:] for expert in range(shape[0])}


def apart(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The linear maps of all these parameters."""
    return {each: shape for name, whole in shapes.items() for each, shape in maps(name, whole).items()}


def parameter_of(map_name: str) -> str:
    """The parameter that holds a linear map."""
    return _found(map_name)[0]


def expert_of(map_name: str) -> int | None:
    """Which expert's it is; None for a parameter that is one map."""
    return _found(map_name)[1]


def _found(name: str) -> tuple[str, int | None]:
    match = _MAP.fullmatch(name)
    return (match[1], int(match[2])) if match else (name, None)


def by_module(map_names: Iterable[str]) -> dict[str, list[str]]:
    """The names by the path of the module that computes them."""
    found: dict[str, list[str]] = {}
    for name in map_names:
        found.setdefault(name.rpartition(".")[0], []).append(name)
    return found


def share_of_tokens(config: Mapping[str, Any]) -> float:
    """K / E: the share of a layer's experts that a token passes; 1 where the config does not say."""
    every, passed = (_most(next((config[key] for key in keys if config.get(key)), 0)) for keys in (NUMBERS, PASSED))
    return passed / every if every and passed else 1.0


def _most(value: Any) -> int:
    """Of what a config gives once, or for each layer."""
    return max(value) if isinstance(value, list | tuple) else value


class Watched:
    """Until `remove`, the forward tells `see` what goes into each map and comes out of it, of every expert in turn,
    also of one that no token passes."""

    def __init__(self, module: Any, path: str, see: Callable[[Seen], None]) -> None:
        self.module = module
        module.forward = partial(_forward, module, path, see)

    def remove(self) -> None:
        """The module's own forward again."""
        del self.module.forward


def _forward(
    module: Any,
    path: str,
    see: Callable[[Seen], None],
    hidden_states: Tensor,  # (T, H)
    top_k_index: Tensor,  # (T, k)
    top_k_weights: Tensor,  # (T, k)
) -> Tensor:  # (T, H)
    """What every implementation of transformers computes, one expert after the other."""
    first, last = leaves(module)
    given = torch.zeros_like(hidden_states)
    for expert in range(module.num_experts):
        tokens, place = (top_k_index == expert).nonzero(as_tuple=True)
        rows = hidden_states[tokens]
        made = _product(module, first, expert, rows)
        see(Seen(f"{path}.{first}[{expert}]", tokens, len(hidden_states), rows, made))
        rows = module._apply_gate(made) if module.has_gate else module.act_fn(made)
        made = _product(module, last, expert, rows)
        see(Seen(f"{path}.{last}[{expert}]", tokens, len(hidden_states), rows, made))
        if getattr(module, "has_post_expert_norm", False):
            made = module.post_expert_norm(made)
        given.index_add_(0, tokens, (made * top_k_weights[tokens, place, None]).to(given.dtype))
    return given


def _product(module: Any, leaf: str, expert: int, rows: Tensor) -> Tensor:
    """(S, o): rows times an expert's matrix."""
    matrix = getattr(module, leaf)[expert]
    bias = getattr(module, f"{leaf}_bias")[expert] if module.has_bias else None
    return nn.functional.linear(rows, matrix.T if module.is_transposed else matrix, bias)
