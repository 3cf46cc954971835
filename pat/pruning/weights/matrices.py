"""Which matrices of a model a weight pruner takes: name patterns, or all linear maps inside its layers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from pat.common import patterns
from pat.common.parameters import is_conv1d, logical_shape
from pat.common.typed import named_modules
from pat.models.experts import are_experts, leaves, share_of_tokens

# As in peft's target_modules, and experts that are one parameter: what is outside the layers stays dense.
ALL_LINEAR = "all-linear"
INPUTS_FIRST = ("Llama4TextExperts",)  # classes that do not say so by `is_transposed`


@dataclass(frozen=True)
class Matrices:
    """The parameters of a model as a weight pruner sees them."""

    shapes: Mapping[str, tuple[int, ...]]  # of all parameters; only those of two or more dimensions are taken
    linear: frozenset[str] = frozenset()  # weights of linear maps inside the model's layers, experts' in one included
    transposed: frozenset[str] = frozenset()  # those stored as (..., inputs, outputs): a Conv1D's, some experts
    stacks: tuple[str, ...] = ()  # what the names of everything inside the layers begin with
    routed: float = 1.0  # the share of the tokens that an expert sees, on average

    @classmethod
    def of(cls, model: nn.Module) -> Matrices:
        """The matrices of a model, whole or sharded."""
        shapes = {name: logical_shape(param) for name, param in model.named_parameters()}
        stacks = [f"{name}." for name, module in named_modules(model) if _is_stack(module)]
        transposed = {f"{name}.weight" for name, module in named_modules(model) if is_conv1d(module)}
        linear = transposed | {f"{name}.weight" for name, m in named_modules(model) if isinstance(m, nn.Linear)}
        experts = {f"{name}.{leaf}" for name, m in named_modules(model) if are_experts(m) for leaf in leaves(m)}
        linear |= experts
        linear = {name for name in linear if any(name.startswith(stack) for stack in stacks)}
        transposed |= {f"{name}.{own}" for name, module in named_modules(model) for own in _inputs_first(module)}
        text = getattr(getattr(model, "config", None), "get_text_config", None)  # another's wrapper may have none
        routed = share_of_tokens(text().to_dict()) if experts and text else 1.0
        return cls(shapes, frozenset(linear & set(shapes)), frozenset(transposed & set(shapes)), tuple(stacks), routed)

    def as_map(self, name: str) -> tuple[int, ...]:
        """The shape of a matrix with the outputs first, however it is stored."""
        *stack, rows, columns = self.shapes[name]
        return (*stack, columns, rows) if name in self.transposed else self.shapes[name]

    def take(self, params: Sequence[str], exclude: Sequence[str] = ()) -> list[str]:
        """Names of the matrices that the patterns take, in the model's order."""
        return [
            name
            for name, shape in self.shapes.items()
            if len(shape) >= 2 and self._matches(name, params) and not patterns.matches(name, exclude)
        ]

    def check(self, place: str, params: Sequence[str], exclude: Sequence[str]) -> None:
        """Raises ValueError where a pattern matches nothing, or all of them together take no matrix."""
        matrices = [name for name, shape in self.shapes.items() if len(shape) >= 2]
        if ALL_LINEAR in params and not self.linear:
            raise ValueError(
                f"{place}.params={ALL_LINEAR} finds no linear map inside the model's layers; it has "
                f"{patterns.in_patterns(matrices)}: name patterns of these"
            )
        patterns.check(f"{place}.params", [p for p in params if p != ALL_LINEAR], matrices, "matrix")
        patterns.check(f"{place}.exclude", exclude, list(self.shapes))
        if not self.take(params, exclude):
            raise ValueError(
                f"{place}.params={list(params)} without exclude={list(exclude)} matches no matrix of the model; it has "
                f"{patterns.in_patterns(matrices)}"
            )

    def unseen(self, names: Collection[str]) -> list[str]:
        """Those of three and more dimensions that are not known to be experts' linear maps, such as experts whose
        forward is their own."""
        return [name for name in names if len(self.shapes[name]) > 2 and name not in self.linear]

    def stacked(self) -> dict[str, tuple[int, ...]]:
        """Parameters inside the layers that hold several matrices in one, `unseen`."""
        return {name: self.shapes[name] for name in self.unseen(self.shapes) if name.startswith(self.stacks)}

    def _matches(self, name: str, params: Sequence[str]) -> bool:
        return patterns.matches(name, params) or (ALL_LINEAR in params and name in self.linear)


def _inputs_first(module: nn.Module) -> list[str]:
    """Parameters of experts that are stored as (experts, inputs, outputs), as those of a few models are."""
    if not getattr(module, "is_transposed", False) and type(module).__name__ not in INPUTS_FIRST:
        return []
    return [name for name, param in module.named_parameters(recurse=False) if len(logical_shape(param)) == 3]


def _is_stack(module: nn.Module) -> bool:
    """Whether it is a list of layers; a list of single linear maps is none."""
    return isinstance(module, nn.ModuleList) and all(any(item.children()) for item in module)
