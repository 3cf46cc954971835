"""The cut of a calibrated criterion: matrix by matrix in a walk over the layers, each on the outputs of the pruned
layers below.

# o outputs and i inputs of a linear map
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pat.common.comm import Comm
from pat.models.experts import expert_of, parameter_of
from pat.pruning.calibration.journal import KEEP, Journal
from pat.pruning.calibration.needs import Needs, is_out_of_memory, nothing, too_large
from pat.pruning.calibration.reconstruction import reconstruct
from pat.pruning.calibration.statistics import InputStatistic, SquaredNorm, is_finite
from pat.pruning.calibration.walk import Layer, Walk, warn_of_unused
from pat.pruning.criteria import Calibrated, Criterion
from pat.pruning.scopes import Scope
from pat.pruning.types import Granularity
from pat.pruning.weights.allocation import Weighing
from pat.pruning.weights.whole import WholeMatrices, chooser

_Cut = tuple[Tensor, Tensor]  # flags (o, i) uint8, weights (o, i) fp32


def check(place: str, criterion: Criterion, masked_grad: str, unseen: Sequence[str]) -> None:
    """ValueError where weights that a cut has removed could come back, or where inputs cannot be seen; `place` is
    pruners.NAME, `unseen` are several matrices in one whose forward is not known."""
    if unseen and (isinstance(criterion, Calibrated) or criterion.prior_samples):
        raise ValueError(
            f"{place} takes {unseen[0]}, which is several matrices in one, as some experts are: calibration does not "
            "see what goes into each, because their forward is none of transformers' interface of experts. Set "
            "criterion: magnitude or movement (prior_score: magnitude), or exclude it"
        )
    if isinstance(criterion, Calibrated) and masked_grad != "zero":
        raise ValueError(
            f"{place}.criterion={criterion.name} fits the weights that stay, so its zeros are final: set "
            "masked_grad.name: zero"
        )


def needs(
    key: str,
    criterion: Criterion,
    maps: Mapping[str, tuple[int, ...]],
    back: int,  # samples through which the loss's gradients go back
    routed: float,  # the share of the tokens that an expert sees, on average
) -> Needs | None:
    """What has to be measured at a cut, or once for a prior; None where the criterion looks at no inputs."""
    if criterion.prior_samples:
        return Needs(key, criterion.prior_samples, maps, (SquaredNorm,), nothing, once=True, routed=routed)
    if not isinstance(criterion, Calibrated):
        return None
    made = criterion
    return Needs(
        key,
        made.num_samples,
        maps,
        made.statistics,
        made.cut_bytes,
        made.cut_flops,
        made.follows,
        made.reconstruct,
        back=back,
        labels=made.gradient_labels if back else 0,
        routed=routed,
    )


@dataclass(frozen=True)
class Method:
    """All settings that decide the result of a cut, besides the inputs."""

    criterion: Calibrated
    granularity: Granularity
    sparsity: float
    scope: Scope
    seed: int


@dataclass(frozen=True)
class Cutter:
    """Cuts matrices by what goes into them."""

    method: Method
    weighing: Weighing
    matrices: WholeMatrices

    def cut(
        self,
        walk: Walk,
        journal: Journal,
        removed: Collection[str] = (),  # matrices that gates have removed whole
    ) -> None:
        """Layer by layer, choose weights by the inputs of their matrices and let the survivors take over. Layers in the
        journal of an earlier start are read from it. Writes flags and weights into the shards. Collective."""
        for layer in walk:
            known = journal.known(layer)
            if known is None:
                self._cut_layer(layer, journal, removed)
                journal.write(layer)
                continue
            for name, values in known:
                if name.startswith(KEEP):
                    self.matrices.mark(name.removeprefix(KEEP), values)
                else:
                    self.matrices.fit(name, values)

    def _cut_layer(self, layer: Layer, journal: Journal, removed: Collection[str]) -> None:
        """Into the shards and the journal. Collective."""
        criterion, matrices = self.method.criterion, self.matrices
        own = [name for name in matrices.shapes if name.startswith(f"{layer.name}.")]
        for name in matrices.maps([name for name in own if name in removed]):
            flags = matrices.turned(name, self._by_size(self.method.sparsity, name)[0])
            matrices.mark(name, flags)
            journal.put(KEEP + name, flags.bool())
        names = matrices.maps([name for name in own if name not in removed])
        if not names:
            return
        if criterion.reconstruct:
            layer.behind()  # while the layer has the weights that it came with, no copy of it is needed
        for name, made in self._cuts(layer, names):
            flags, values = (matrices.turned(name, each) for each in made)
            matrices.mark(name, flags)
            matrices.fit(name, values)
            journal.put(KEEP + name, flags.bool())
            journal.put(name, values)
        if criterion.reconstruct:
            layer.refresh(layer.parameters)
            settings = criterion.reconstruct, criterion.reconstruct_lr, self.method.seed
            for name, fitted in reconstruct(layer, names, *settings):
                matrices.fit(name, fitted)
                journal.put(name, fitted)

    def _by_size(self, share: float, name: str) -> _Cut:
        """Where nothing is known of the inputs: to this share the smallest weights, which in a matrix of zeros are any.
        Collective."""
        weights = self.matrices.weights(name)
        keep = chooser(name, self.method.granularity, share, self.method.scope)(weights.abs())
        return keep.to(torch.uint8), weights.mul_(keep)

    def _cuts(
        self,
        layer: Layer,
        names: Sequence[str],  # matrices of the layer
    ) -> Iterator[tuple[str, _Cut]]:
        """The cut of every matrix of a layer. Matrices with the same inputs are cut by one rank, which then alone keeps
        these inputs' statistics; as many ranks work at once as there are different inputs. Collective."""
        comm = layer.walk.comm
        inputs = layer.collect({name: self.method.criterion.statistics for name in names})
        layer.let_go()
        unused = [name for name in names if expert_of(name) is not None and _is_zero(inputs[name])]
        warn_of_unused(layer.walk, unused)
        for name in unused:
            yield name, self._by_size(self.weighing.share(name, self.method.sparsity), name)
            del inputs[name]
        sharing: dict[int, list[str]] = {}
        for name in inputs:
            sharing.setdefault(id(inputs[name]), []).append(name)
        groups = list(sharing.values())
        for place, group in enumerate(groups):
            if place % comm.world_size != comm.rank:
                for name in group:
                    del inputs[name]
        for start in range(0, len(groups), comm.world_size):
            yield from self._cuts_at_once(groups[start : start + comm.world_size], inputs, comm)

    def _cuts_at_once(
        self,
        groups: Sequence[Sequence[str]],  # groups[r] is cut by rank r
        inputs: dict[str, Any],  # of this rank's matrices; those that are cut are taken out
        comm: Comm,
    ) -> Iterator[tuple[str, _Cut]]:
        """Their cuts: first all matrices are brought together, so that no rank waits for another's work. Collective."""
        shapes: dict[str, tuple[int, ...]] = {}
        owners: dict[str, int] = {}
        mine: dict[str, Tensor] = {}
        for rank, group in enumerate(groups):
            for name in group:
                dense = self.matrices.weights(name)
                shapes[name], owners[name] = tuple(dense.shape), rank
                if rank == comm.rank:
                    mine[name] = dense
                del dense
        made, said = _cut_group(self.method, self.weighing, mine, inputs) if mine else ({}, [])
        refused = [sentence for each in comm.gather(said) for sentence in each]
        if refused:
            raise ValueError(refused[0])
        for name, shape in shapes.items():
            flags, values = made.pop(name, None) or (
                torch.empty(shape, dtype=torch.uint8, device=comm.device),
                torch.empty(shape, device=comm.device),
            )
            yield name, (comm.broadcast(owners[name], flags), comm.broadcast(owners[name], values))


def _is_zero(means: Mapping[type[InputStatistic], Tensor]) -> bool:
    return not any(bool(value.any()) for value in means.values())


def _scaled(choose: Callable[[Tensor], Tensor], scale: Tensor) -> Callable[[Tensor], Tensor]:
    """The choice by scores (o, i) of which each row counts `scale` (o,) times: nothing else of a weight is touched."""
    return lambda scores: choose(scores.mul_(scale[:, None]))


def _cut_group(
    method: Method,
    weighing: Weighing,
    dense: dict[str, Tensor],  # matrices with the same inputs; used up
    inputs: dict[str, Any],  # those of `dense` are used up
) -> tuple[dict[str, _Cut], list[str]]:
    """(cuts, sentences why there are none): the other ranks wait, so errors must not be raised here."""
    criterion, made = method.criterion, dict[str, _Cut]()
    name, shape = next((name, each.shape) for name, each in dense.items())
    try:
        prepared = criterion.prepare([inputs.pop(each) for each in dense][0])
        for name in list(dense):
            weights = dense.pop(name)
            shape = weights.shape
            choose = chooser(name, method.granularity, weighing.share(name, method.sparsity), method.scope)
            scale, gone = weighing.outputs.get(name), (weights == 0).all(0)
            if scale is not None and criterion.fits:
                weights = weights.mul_(scale[:, None])
            elif scale is not None:
                choose = _scaled(choose, scale)
            keep, fitted = criterion.cut(weights, prepared, choose)
            if scale is not None and criterion.fits:
                fitted = fitted.div_(scale[:, None])
            fitted[:, gone] = 0.0  # inputs that gates have removed: nothing is fitted into them, not even rounding
            del weights
            if not is_finite(fitted):
                return {}, [
                    f"{name}: {criterion.name} gives weights that are not finite; raise criterion.damping, or give "
                    "more samples (criterion.num_samples), and take another run.dir"
                ]
            made[name] = keep.to(torch.uint8).contiguous(), fitted.float().contiguous()
    except (MemoryError, ValueError, RuntimeError) as error:  # torch's errors of linear algebra are RuntimeErrors
        if is_out_of_memory(error):
            return {}, [too_large(parameter_of(name), criterion.name, criterion.cut_bytes(*shape))]
        return {}, [f"{name} cannot be pruned by {criterion.name}: {error}"]
    return made, []
