"""A Llama with gates, said naively: the matrices that read or write what a gate multiplies, times the gates.

At the hard step they are multiplied for good. A weight w behind z has the gradient z G where the folded one has G. So
Adam's averages of z G and (z G)^2 become those of G when they are divided by the same averages of z and z^2.

# L layers, n units of a structure in a layer, z gates (L, n)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tests.gate_choice import Shape, Units

Forward = Callable[..., Any]  # the gated model

CONSUMER = {  # the matrix that reads, or writes, what a gate multiplies; True: a unit is some of its columns
    "ffn": ("mlp.down_proj", True),
    "kv_groups": ("self_attn.o_proj", True),
    "heads": ("self_attn.o_proj", True),
    "attention_layers": ("self_attn.o_proj", False),
    "mlp_layers": ("mlp.down_proj", False),
}


def scaled(shape: Shape, params: Mapping[str, Tensor], z: Units) -> dict[str, Tensor]:
    """The consuming matrices times the gates: columns, or the whole."""
    found: dict[str, Tensor] = {}
    for structure, gates in z.items():
        if structure == "layers":
            continue
        module, columns = CONSUMER[structure]
        for i, gate in enumerate(gates):
            name = f"model.layers.{i}.{module}.weight"
            weight = found.get(name, params[name])
            found[name] = weight * (gate.repeat_interleave(weight.shape[1] // len(gate)) if columns else gate)
    return found


def gated(model: nn.Module, shape: Shape, z: Units) -> Forward:
    """The model's forward with gates, without gradients."""

    @torch.no_grad()
    def forward(*args: Any, **kwargs: Any) -> Any:
        with Recorder(model, z.get("layers")):
            return functional_call(model, scaled(shape, dict(model.named_parameters()), z), args, kwargs)

    return forward


def fold(
    shape: Shape,
    params: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    z: Units,  # for good
    keep: Units,
    history: Sequence[Units],  # what has multiplied in every step
) -> None:
    """Weights times z, and Adam's moments as their gradients would have been; what is gone is 0, with its moments."""
    (beta1, beta2) = optimizer.param_groups[0]["betas"]
    for structure, gates in z.items():
        past = torch.stack([each[structure] for each in history])
        by = {"exp_avg": 1.0 / _average(past, beta1), "exp_avg_sq": 1.0 / _average(past.square(), beta2)}
        for i in range(shape.layers):
            for unit in range(gates.shape[1]):
                for name, dim, start, stop in shape.owned(structure, i, unit):
                    here = torch.zeros(()) + keep[structure][i, unit]
                    weight = params[name]
                    reads = structure != "layers" and name.endswith(f"{CONSUMER[structure][0]}.weight")
                    factors = {"weight": gates[i, unit] if reads else here}
                    for moment, factor in by.items():
                        factors[moment] = factor[i, unit] if here and (reads or structure == "layers") else here
                    state: dict[str, Tensor] = {"weight": weight.data} | optimizer.state[weight]
                    for key, factor in factors.items():
                        if key in state:
                            state[key].narrow(dim, start, min(stop, weight.shape[dim]) - start).mul_(factor)


def _average(past: Tensor, beta: float) -> Tensor:
    """Adam's, over the steps of (t, L, n), with its correction."""
    weights = torch.tensor([beta**age for age in reversed(range(len(past)))])[:, None, None]
    return (weights * past).sum(0) / weights.sum()


class Recorder:
    """What goes through a model's modules; whole layers are gated here: output = x + z * (layer(x) - x)."""

    def __init__(self, model: Any, z: Tensor | None) -> None:
        self.model, self.z = model, z
        self.inputs: dict[str, Tensor] = {}
        self.blocks: dict[int, tuple[Tensor, Tensor]] = {}

    def __enter__(self) -> Recorder:
        self.handles = []
        for i, layer in enumerate(self.model.model.layers):
            for name in ("self_attn.o_proj", "mlp.down_proj"):
                module = layer.get_submodule(name)
                self.handles.append(module.register_forward_hook(self._input(f"model.layers.{i}.{name}")))
            self.handles.append(layer.register_forward_hook(self._block(i), with_kwargs=True))
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()

    def _input(self, name: str) -> Any:
        return lambda module, args, output: self.inputs.update({name: args[0].detach()})

    def _block(self, i: int) -> Any:
        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            self.blocks[i] = before.detach(), after.detach()
            mixed = after if self.z is None else before + self.z[i] * (after - before)
            return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

        return hook
