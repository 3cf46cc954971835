"""Gates in the forward: hooks that multiply by z at a site, and take statistics there.

`SiteHooks` are those of one site; `GatedForward` is the forward of a model as vectors over the units of all its sites.

# B batch, T tokens, n inputs or outputs of a consuming module, u units of a site, U of all sites
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from pat.common.comm import Comm
from pat.common.typed import repeats_a_forward, split, unflatten, untyped
from pat.pruning.gates import BY_GRADIENT, OF_NO_STEP, STATISTICS, Evidence
from pat.pruning.structures import example_gradients
from pat.pruning.structures.real_tokens import RealTokens
from pat.pruning.structures.sites import Site


class _Open(torch.autograd.Function):
    """x * z where all of z is 1: x itself, and the bits of both gradients, for half of the passes over x.

    dL/dx = dL/dy, dL/dz = sum over tokens of x dL/dy
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.shape = z.shape
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (x,), (y,) = ctx.saved_tensors, grads
        return y, (y * x).sum_to_size(ctx.shape)


class _Bits(torch.autograd.Function):
    """What x is but for rounding and overflow, with x's gradients: an open gate leaves the bits of its layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, exact: Tensor) -> Tensor:
        return exact.view_as(exact)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class SiteHooks:
    """The hooks of one site. `z` is what multiplies now, (u,) fp32; None: the forward stays untouched."""

    def __init__(
        self,
        site: Site,
        model: nn.Module,
        needs: Evidence | None,
        tokens: RealTokens | None = None,  # for statistics
    ) -> None:
        self.site, self.tokens = site, tokens
        self.needs: Evidence | None = needs
        self.z: Tensor | None = None
        self.z_eval: Tensor | None = None  # in evaluation; None: z
        self.open = self.open_eval = False  # all of z, of z_eval is 1
        self.sums: Tensor | None = None  # (k u + 1,) fp64: k figures per unit, and the tokens or examples in them
        self.before: SiteHooks | None = None  # of the layer before, with which this one is a pair
        self.entered: Tensor | None = None  # what went into this layer, until its pair is measured
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
        if self._takes_statistics(module):
            self._add(unflatten(x.detach().float().square(), -1, (self.site.num_units, -1)).sum(-1))
        z = self.factor(module)
        return None if z is None else (self._gated(x, z), *args[1:])

    def _outputs(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if self._takes_statistics(module):
            self._add(output.detach().float().square().sum(-1, keepdim=True))
        z = self.factor(module)
        return None if z is None else self._gated(output, z)

    def _block(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        before: Tensor = args[0] if args else kwargs["hidden_states"]
        outputs: tuple[Any, ...] = untyped(output) if isinstance(output, tuple) else (output,)
        after: Tensor = outputs[0]
        if self._takes_statistics(module):
            if self.needs == "similarity_of_pairs":
                self._close_pair(before.detach(), after.detach())
            else:
                self._add(_change(before.detach(), after.detach(), self.needs))
        z = self.factor(module)
        if z is None:
            return None
        mixed: Tensor = before + self._gated(after - before, z)
        if self._is_open(z):
            mixed = untyped(_Bits).apply(mixed, after.detach())
        return (mixed, *outputs[1:]) if isinstance(output, tuple) else mixed

    def _is_open(self, z: Tensor) -> bool:
        return self.open if z is self.z else self.open_eval

    def _gated(self, x: Tensor, z: Tensor) -> Tensor:
        """(B, T, n): x times the gates."""
        by_example, is_open = self.needs in example_gradients.SUMMED and z.requires_grad, self._is_open(z)
        factor = (z.detach() if by_example else z).to(x.dtype).repeat_interleave(self.site.features or 1)
        if by_example:
            return example_gradients.Gated.apply(x, z, factor, is_open, self._take)  # type: ignore[return-value]
        return _Open.apply(x, factor) if is_open else x * factor  # type: ignore[return-value]

    def _take(self, gradients: Tensor) -> None:
        """(B, u) of a micro-batch, from its backward."""
        assert self.needs is not None
        self._sum(example_gradients.line(self.needs, gradients))

    def _takes_statistics(self, module: nn.Module) -> bool:
        """In a training forward, but not where it is repeated in a backward (activation checkpointing)."""
        return module.training and self.needs in STATISTICS and not repeats_a_forward()

    def _close_pair(self, before: Tensor, after: Tensor) -> None:
        """What the layer before and this one change together counts as the former's statistic."""
        first, self.entered = self.before, before
        if first is not None and first.entered is not None:
            first._add(_change(first.entered, after, self.needs))
            first.entered = None

    def _add(self, statistic: Tensor) -> None:
        """(B, T, u) fp32 of a micro-batch: summed over the tokens that are not padding, which are counted."""
        assert self.tokens is not None
        real = self.tokens.real
        if real is None:
            count = statistic.new_full((1,), statistic.shape[:-1].numel(), dtype=torch.float64)
        else:
            statistic, count = statistic.masked_fill(~real[..., None], 0.0), real.sum().double().view(1)
        self._sum(torch.cat([statistic.sum((0, 1), dtype=torch.float64), count]))

    def _sum(self, line: Tensor) -> None:
        self.sums = line if self.sums is None else self.sums + line


def _change(before: Tensor, after: Tensor, needs: Evidence | None) -> Tensor:
    """(B, T, 1) fp32: 1 - cos(before, after), or the squared norm of what the block adds."""
    if needs in ("similarity", "similarity_of_pairs"):
        return 1.0 - torch.cosine_similarity(before.float(), after.float(), dim=-1)[..., None]
    return (after - before).float().square().sum(-1, keepdim=True)


def install(
    sites: list[Site], model: nn.Module, needs: Evidence | None, tokens: RealTokens | None = None
) -> list[SiteHooks]:
    """Hooks on the consuming module of every site. ValueError where a module cannot be found."""
    hooks = [SiteHooks(site, model, needs, tokens) for site in sites]
    if needs == "similarity_of_pairs":
        for first, second in pairwise(hooks):
            second.before = first
    return hooks


class GatedForward:
    """The gates at all sites, and the evidence that is collected there."""

    def __init__(self, sites: list[Site], model: nn.Module, needs: Evidence | None) -> None:
        self.needs: Evidence | None = needs
        self.sites, self.model = sites, model
        self.sizes = [site.num_units for site in sites]
        self._install()

    def _install(self) -> None:
        self.tokens = RealTokens(self.model) if self.needs in STATISTICS else None
        self.hooks = install(self.sites, self.model, self.needs, self.tokens)

    def install_again(self) -> None:
        """Undo `settle`, which took hooks off: for a run that goes back to its soft phase."""
        self.remove()
        self._install()

    def set(self, z: Tensor | None, evaluated: Tensor | None, device: torch.device) -> None:
        """(U,) the gates in training and in evaluation. None: no gates in training; those of training in evaluation."""
        gates, means = self._split(z), self._split(evaluated)
        for hook, part, mean in zip(self.hooks, gates, means, strict=True):
            by_gradient = self.needs in BY_GRADIENT
            hook.open, hook.open_eval = (gate is not None and bool((gate == 1).all()) for gate in (part, mean))
            hook.z = None if part is None else part.to(device, copy=True).requires_grad_(by_gradient)
            hook.z_eval = None if mean is None else mean.to(device)

    def settle(self, z: Tensor, device: torch.device) -> None:
        """(U,) what multiplies for good: sites whose gates are all 1 lose their hooks, and evidence is no longer
        taken."""
        self._see_no_more()
        for hook, mine in zip(self.hooks, split(z, self.sizes), strict=True):
            if bool((mine == 1).all()):
                hook.remove()
            else:
                hook.needs, hook.z, hook.z_eval, hook.open, hook.open_eval = None, mine.to(device), None, False, False

    def remove(self) -> None:
        """Take all hooks off."""
        self._see_no_more()
        for hook in self.hooks:
            hook.remove()

    def opened(self, keep: Tensor) -> str | None:
        """The first site where a unit is let through although its flag, of (U,) bool, is down; None: there is none."""
        for hook, flags in zip(self.hooks, split(keep, self.sizes), strict=True):
            z = torch.ones(flags.numel()) if hook.z is None else hook.z.cpu()
            if bool(z[~flags].any()):
                return hook.site.name
        return None

    def evidence(self, world: Comm, scale: float) -> Tensor | None:
        """(U,) or (k, U): the evidence of this step, over all ranks; it is then reset. None where the method needs
        none.

        `scale`: of the loss. Collective.
        """
        if self.needs is None or self.needs in OF_NO_STEP:
            return None
        return self._gradients(world, scale) if self.needs == "gradient" else self._means(world, scale, self.needs)

    def _gradients(self, world: Comm, scale: float) -> Tensor:
        gradients: list[Tensor] = []
        for hook in self.hooks:
            grad = None if hook.z is None else hook.z.grad
            gradients.append(torch.zeros(hook.site.num_units, device=world.device) if grad is None else grad)
        return (world.sum(torch.cat(gradients)) / (world.world_size * scale)).cpu()

    def _means(self, world: Comm, scale: float, needs: Evidence) -> Tensor:
        """Sums and counts are added over ranks before they are divided: ranks may have seen different numbers of
        tokens."""
        by_example = needs in example_gradients.SUMMED
        lines_each = len(example_gradients.SUMMED[needs]) if by_example else 1
        lengths = [lines_each * n + 1 for n in self.sizes]
        sums: list[Tensor] = []
        for hook, n in zip(self.hooks, lengths, strict=True):
            empty = torch.zeros(n, dtype=torch.float64, device=world.device)
            sums.append(empty if hook.sums is None else hook.sums.to(world.device))
            hook.sums = None
            hook.entered = None
        lines = split(world.sum(torch.cat(sums)).cpu(), lengths)
        if by_example:
            means = [example_gradients.mean(needs, line, world.world_size * scale) for line in lines]
            return torch.cat(means, dim=1).float().squeeze(0)
        means = torch.cat([line[:-1] / line[-1].clamp(min=1.0) for line in lines]).float()
        return _of_pairs(means) if needs == "similarity_of_pairs" else means

    def _see_no_more(self) -> None:
        if self.tokens is not None:
            self.tokens.remove()

    def _split(self, values: Tensor | None) -> Sequence[Tensor | None]:
        return [None] * len(self.sizes) if values is None else split(values, self.sizes)


def _of_pairs(pairs: Tensor) -> Tensor:
    """(U,) the mean of the pairs that a layer is in; pairs, (U,): of each layer and the next, of the last none."""
    pairs = pairs[:-1]
    return (torch.cat([pairs[:1], pairs]) + torch.cat([pairs, pairs[-1:]])) / 2.0
