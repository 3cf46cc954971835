"""The layers of a model one after another, each on what the layers before it now give.

The walk has a model of its own, which DeepSpeed has never seen: on the meta device, with one layer's weights at a time,
brought together from the shards of all ranks. So it works the same at every ZeRO stage, and holds one layer and the
hidden states of this rank's samples. What is pruned in a layer changes what the next one is calibrated on, and a whole
walk costs two forwards of the samples, whatever the number of layers. A walk that follows the model as it was before
costs at least a third; where what a layer gave then is wanted beside what it gives now, the walk holds a second copy of
it, with the weights that it came with.

# B rows of a micro-batch, T tokens, d inputs of a linear map, o outputs
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pat.common.comm import LOCAL, Comm
from pat.common.parameters import is_conv1d
from pat.models.experts import are_experts, by_module, expert_of, parameter_of
from pat.pruning.calibration.calls import OTHERWISE, Call, NotCalibrated, inputs_of, recording, without_cache
from pat.pruning.calibration.gap import Gap, GapProbe
from pat.pruning.calibration.hidden import HiddenStates
from pat.pruning.calibration.needs import no_room
from pat.pruning.calibration.probe import Enough, Probe, Statistics
from pat.pruning.calibration.room import Room
from pat.pruning.calibration.skeleton import aliases, skeleton_of
from pat.pruning.calibration.statistics import InputStatistic, is_finite
from pat.tasks import padding


class Walk:
    """One pass over the layers. Collective: every rank walks at once, with as many micro-batches as the others."""

    def __init__(
        self,
        model: nn.Module,  # whose class, config and buffers count; its weights come from `whole`
        whole: Callable[[str], Tensor],  # name -> the whole effective weight in its logical shape. Collective
        stack: str,  # see stack_of
        batches: Sequence[Mapping[str, Any]],  # this rank's samples, on the device
        dtype: torch.dtype,
        comm: Comm = LOCAL,
        on_layer: Callable[[int, int], None] = lambda index, number: None,  # told before each layer, and at the end
        follow: bool = False,  # also the model as it is now, for `Layer.behind` and what is missing
        warn: Callable[[str, str], None] = lambda title, text: None,
        in_dtype: Callable[[str], Tensor] | None = None,  # the same in `dtype`, where that takes less than all of fp32
    ) -> None:
        self.whole, self.stack, self.dtype, self.comm = whole, stack, dtype, comm
        self.on_layer, self.warn = on_layer, warn
        self.in_dtype = in_dtype
        self.skeleton = skeleton_of(model)
        self.aliases = aliases(self.skeleton)
        self.gates: dict[str, Tensor] = {}  # by site, what multiplies in the skeleton's hooks
        self.layers: Any = self.skeleton.get_submodule(stack)
        self.real = [_real_tokens(batch) for batch in batches]
        self.tokens = int(comm.sum(torch.tensor(sum(int(r.sum()) for r in self.real), dtype=torch.int64)))
        if not self.tokens:
            raise NotCalibrated("There is no token to calibrate on: all calibration samples are padding.")
        self._enter(batches)
        self.follow = follow
        # What goes into the layer in the model as it was before.
        self.before = self.hidden.copy() if follow else HiddenStates()

    def __iter__(self) -> Iterator[Layer]:
        """Every layer; what the consumer has written to the weights by then is what the next layer's inputs see."""
        for index, layer in enumerate(self.layers):
            self.on_layer(index, len(self.layers))
            with torch.no_grad():
                own = self.parameters(index)
                self.fill(own)
                here = Layer(self, index)
                yield here
                self.before = here.behind()
                self.fill(own)
                for place, call in enumerate(self.calls[index]):
                    self.hidden[place] = call(layer, self.hidden[place])
                self.drop(own)
        self.hidden, self.before = HiddenStates(), HiddenStates()
        self.on_layer(len(self.layers), len(self.layers))

    # -- the beginning -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _enter(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """What goes into the first layer, and how each layer is called, from the model's own forward."""
        inside = f"{self.stack}."
        base: Any = self.skeleton.base_model  # type: ignore[union-attr]
        below = {id(p) for p in base.parameters()}
        outside = [n for n, p in self.skeleton.named_parameters() if id(p) in below and not n.startswith(inside)]
        self.fill(outside)
        self.calls: list[list[Call]] = [[] for _ in self.layers]
        self.hidden = HiddenStates()
        with recording(self.layers, self.calls, self.hidden, self.real):
            for batch in batches:
                try:
                    base(**inputs_of(batch, base), **without_cache(base))
                except (NotCalibrated, torch.OutOfMemoryError):
                    raise
                except Exception as error:  # of another's code
                    raise NotCalibrated(
                        f"The layers of this {type(base).__name__} cannot be calibrated one by one, because its "
                        f"forward fails without them ({_in_a_line(error)}): {OTHERWISE}"
                    ) from error
        self.drop(outside)
        for index, calls in enumerate(self.calls):
            if len(calls) != len(batches):
                raise NotCalibrated(
                    f"{self.stack}.{index} is called {len(calls) / len(batches):g} times by the model's forward, and a "
                    f"calibration needs layers that are called once: {OTHERWISE}"
                )

    # -- weights -----------------------------------------------------------------------------------------------------

    def parameters(self, index: int) -> list[str]:
        """The names of a layer's parameters in the whole model."""
        return [f"{self.stack}.{index}.{name}" for name, _ in self.layers[index].named_parameters()]

    def fill(self, names: Sequence[str]) -> None:
        """The weights as they are now. Collective."""
        for name in names:
            self._set(name, self.whole(name).to(self.dtype) if self.in_dtype is None else self.in_dtype(name))

    def drop(self, names: Sequence[str]) -> None:
        """Free the memory of these weights until they are filled again."""
        for name in names:
            self._set(name, torch.empty_like(self.skeleton.get_parameter(name), device="meta"))

    def _set(self, name: str, value: Tensor) -> None:
        param = nn.Parameter(value, requires_grad=False)
        for alias in self.aliases[name]:
            owner, _, leaf = alias.rpartition(".")
            setattr(self.skeleton.get_submodule(owner), leaf, param)


class Layer:
    """One layer in the walk, with its weights."""

    def __init__(self, walk: Walk, index: int) -> None:
        self.walk, self.index = walk, index
        self.name = f"{walk.stack}.{index}"
        self.parameters = walk.parameters(index)
        self._twin: Any = None  # a copy with the weights that the layer came with, once it is needed
        self._behind = HiddenStates()  # what the layer gave with them

    def refresh(self, names: Sequence[str]) -> None:
        """Let what follows see these weights of the layer as they are now. Collective."""
        if self.walk.follow and len(self._behind) < len(self.walk.before):
            self.twin()
        self.walk.fill(names)

    def let_go(self) -> None:
        """Free the layer's weights, and those that it came with: what has been measured suffices until a `refresh`."""
        if not self.walk.follow or len(self._behind) == len(self.walk.before):
            self._twin = None
            self.walk.drop(self.parameters)

    def twin(self) -> Any:
        """The layer with the weights that it came with; the first time while it still has them."""
        self._twin = copy.deepcopy(self.module) if self._twin is None else self._twin
        return self._twin

    def collect(
        self,
        statistics: Statistics,
        after: Callable[[int], None] | None = None,  # each micro-batch
    ) -> dict[str, dict[type[InputStatistic], Tensor]]:
        """Means over the tokens of all ranks, by matrix and statistic. An input that several matrices share is measured
        once, and they get the same tensors. Collective. Raises NotCalibrated on all ranks where one has no memory."""
        walk = self.walk
        probe = Probe(statistics, to_the_end=after is not None)
        for path, names in by_module(statistics).items():
            probe.watch(path, walk.skeleton.get_submodule(path), names)

        def forward() -> None:
            calls = zip(walk.calls[self.index], walk.hidden, walk.real, strict=True)
            for batch, (call, hidden, real) in enumerate(calls):
                here = call.on(hidden.device)
                probe.next(real, here.given(hidden))
                with suppress(Enough):
                    here(self.module, hidden)
                if after is not None:
                    after(batch)

        def sentence() -> str:
            sizes = [kind.num_bytes(self._inputs(name)) for name, kinds in statistics.items() for kind in kinds]
            return no_room(self.name, sum(sizes))

        try:
            Room(walk.comm, sentence).given(forward)
        finally:
            probe.remove()
        unused = sorted(set(statistics) - set(probe.first) - set(probe.first_of_more))
        if unused:
            raise NotCalibrated(
                f"{parameter_of(unused[0])} is not used by the forward as a linear map of its own, so what goes into "
                "it cannot be measured: exclude it"
            )
        means = probe.means(walk.comm, walk.tokens)
        for name, kinds in means.items():
            if not all(is_finite(value) for value in kinds.values()):
                raise NotCalibrated(
                    f"What goes into {name} is not finite on the calibration samples: the model has diverged, or "
                    "overflows in engine.dtype"
                )
        return means

    def collect_with_gaps(
        self,
        statistics: Statistics,
        summed: Mapping[str, Sequence[str]],  # matrices whose outputs are added to the layer's input, up to its own
    ) -> tuple[dict[str, dict[type[InputStatistic], Tensor]], dict[str, Gap]]:
        """`collect`, and what is missing by matrix: of the residual behind it, or, where nothing is summed up, of its
        output. Of a walk that follows the model as it was before. Collective."""
        walk, added = self.walk, {name: list(summed.get(name, ())) or [name] for name in statistics}
        probes = {name: GapProbe({n: self._module(n) for n in added[name]}, name) for name in statistics}
        gave: dict[str, Tensor] = {}
        scale = float(getattr(walk.skeleton.config, "residual_multiplier", 1.0))  # Granite's h + m f(h)
        twin = self.twin()
        handles = [
            twin.get_submodule(self._path(name)).register_forward_hook(partial(_note, gave, name))
            for name in {n for names in added.values() for n in names}
        ]
        self._behind = HiddenStates()

        def add(batch: int) -> None:
            self._behind.append(walk.calls[self.index][batch](twin, walk.before[batch]))
            for name, probe in probes.items():
                residual = (walk.before[batch], walk.hidden[batch]) if summed.get(name) else None
                probe.add({n: gave[n] for n in added[name]}, residual, walk.real[batch], scale)

        try:
            means = self.collect(statistics, add)
        finally:
            for handle in (*handles, *probes.values()):
                handle.remove()
        return means, {name: probe.gap(walk.comm, walk.tokens) for name, probe in probes.items()}

    def behind(self) -> HiddenStates:
        """What the layer gives in the model as it was before, by micro-batch; none where the walk does not follow it.
        Asked for while the layer has the weights that it came with, it needs no copy of them."""
        module = self.module if self._twin is None else self._twin
        for place in range(len(self._behind), len(self.walk.before)):
            self._behind.append(self.walk.calls[self.index][place](module, self.walk.before[place]))
        return self._behind

    @property
    def module(self) -> nn.Module:
        """The layer itself, with the weights as they are now."""
        return self.walk.layers[self.index]

    def _module(self, name: str) -> nn.Module:
        return self.module.get_submodule(self._path(name))

    def _inputs(self, name: str) -> int:
        module: Any = self._module(name)
        if are_experts(module):
            leaf = parameter_of(name).rpartition(".")[2]
            return module.get_parameter(leaf).shape[1 if module.is_transposed else 2]
        return module.get_parameter("weight").shape[0 if is_conv1d(module) else 1]

    def _path(self, name: str) -> str:
        """The path of a matrix's module inside the layer."""
        return name.removeprefix(f"{self.name}.").rpartition(".")[0]


def warn_of_unused(walk: Walk, map_names: Sequence[str]) -> None:
    """Say into which experts nothing goes."""
    for path, names in by_module(map_names).items():
        numbers = ", ".join(str(number) for number in sorted({expert_of(name) or 0 for name in names}))
        walk.warn(
            "experts without a token",
            f"warning: on the calibration samples nothing goes into expert {numbers} of {path}, so the size of its "
            "weights decides; give more samples (criterion.num_samples)",
        )


def _note(outputs: dict[str, Tensor], name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
    outputs[name] = output


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0].rstrip('.')}"


def _real_tokens(batch: Mapping[str, Any]) -> Tensor:
    """(B, T) bool: which tokens are no padding."""
    mask = batch.get("attention_mask")
    mask = padding.current() if mask is None else mask
    return torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask.bool()
