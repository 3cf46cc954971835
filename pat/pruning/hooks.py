"""Gates in the forward: hooks that multiply by z where a site says, and that take statistics there.

# B batch, T tokens, n inputs or outputs of a consuming module, u units of a site
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pat.pruning.gates import Evidence
from pat.pruning.sites import Site


class SiteHooks:
    """The hooks of one site. `z` is what multiplies now, (u,) fp32; None: the forward stays untouched."""

    def __init__(self, site: Site, model: nn.Module, needs: Evidence | None) -> None:
        self.site, self.needs = site, needs
        self.z: Tensor | None = None
        self.z_eval: Tensor | None = None  # in evaluation; None: z
        self.sums: Tensor | None = None  # (u + 1,) fp64: the statistic per unit, and the tokens
        module = model.get_submodule(site.consumer)
        if site.features:
            self.handle: Any = module.register_forward_pre_hook(self._inputs)
        elif site.sublayer is not None:
            self.handle = module.register_forward_hook(self._outputs)
        else:
            self.handle = module.register_forward_hook(self._block, with_kwargs=True)

    def remove(self) -> None:
        """Take the hook off."""
        self.handle.remove()

    def factor(self, module: nn.Module) -> Tensor | None:
        """(u,) what multiplies in the module's mode."""
        return self.z if module.training or self.z_eval is None else self.z_eval

    def _inputs(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        x: Tensor = args[0]  # (B, T, n)
        if self.needs == "activations" and module.training:
            self._add(x.detach().float().square().reshape(-1, self.site.num_units, self.site.features).sum((0, 2)), x)
        z = self.factor(module)
        if z is None:
            return None
        return (x * z.to(x.dtype).repeat_interleave(self.site.features), *args[1:])

    def _outputs(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if self.needs == "activations" and module.training:
            self._add(output.detach().float().square().sum().reshape(1), output)
        z = self.factor(module)
        return None if z is None else output * z.to(output.dtype)

    def _block(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        before: Tensor = args[0] if args else kwargs["hidden_states"]
        after: Tensor = output[0] if isinstance(output, tuple) else output
        if self.needs in ("similarity", "activations") and module.training:
            self._add(_change(before.detach(), after.detach(), self.needs).reshape(1), before)
        z = self.factor(module)
        if z is None:
            return None
        mixed = before + z.to(before.dtype) * (after - before)
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

    def _add(self, statistic: Tensor, tokens: Tensor) -> None:
        """Sums, on the device. A recomputed forward (activation checkpointing) counts twice: the mean is the same."""
        line = torch.cat([statistic.double(), torch.tensor([tokens.numel() // tokens.shape[-1]]).to(statistic)])
        self.sums = line if self.sums is None else self.sums + line


def _change(before: Tensor, after: Tensor, needs: Evidence) -> Tensor:
    """() summed over tokens: 1 - cos(before, after), or the squared norm of what the block adds."""
    if needs == "similarity":
        return (1.0 - torch.cosine_similarity(before.float(), after.float(), dim=-1)).sum()
    return (after - before).float().square().sum()


def install(sites: list[Site], model: nn.Module, needs: Evidence | None) -> list[SiteHooks]:
    """Hooks on the consuming module of every site. ValueError where a module cannot be found."""
    return [SiteHooks(site, model, needs) for site in sites]
