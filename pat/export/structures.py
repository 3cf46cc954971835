"""What a run with gates leaves: the smaller model as a function of its checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pat.checkpoint.reader import CheckpointReader
from pat.export.slicing import Slicing, slicing
from pat.pruning.structures.hooks import install
from pat.pruning.structures.pruner import GatePruner
from pat.schema import Config
from pat.zero.checkpoint_files import CheckpointError


@dataclass(frozen=True)
class Structures:
    """The pruners of structures of a checkpoint, and what they make of the model."""

    gates: Sequence[GatePruner] = ()
    cut: Slicing | None = None  # None: nothing is sliced
    z: dict[str, Tensor] = field(default_factory=dict)  # per site: what multiplied in the forward

    @property
    def flags(self) -> dict[str, Tensor]:
        """Per site (num_units,) uint8, 1 = the unit survives."""
        return {site: keep for gate in self.gates for site, keep in gate.keep_flags().items()}

    @property
    def parameters(self) -> set[str]:
        """All of which a unit owns a slice."""
        return {name for gate in self.gates for name in gate.units.parameters}

    @property
    def prunable(self) -> int:
        """Parameters that would go with all units."""
        return sum(gate.numel for gate in self.gates)

    @property
    def pruned(self) -> int:
        """Parameters that are gone."""
        return sum(gate.num_pruned for gate in self.gates)

    @property
    def stock(self) -> bool:
        """Whether stock from_pretrained loads the result."""
        return self.cut is None or getattr(self.cut.config, "pat_widths", None) is None

    def describe(self) -> list[str]:
        """Per structure what is left, for tables."""
        return [gate.units.in_words(gate.counts()) for gate in self.gates]

    def gate_forward(self, model: nn.Module) -> None:
        """Put the checkpoint's gates into a model of the full shape."""
        for gate in self.gates:
            for hook in install(gate.sites, model, None):
                z = self.z[hook.site.name]
                hook.z = None if bool((z == 1).all()) else z


def structures(reader: CheckpointReader, config: Config, hf_config: Any, model: nn.Module) -> Structures:
    """The pruners of structures of a run at a checkpoint; `model` has the full shape, on the meta device.

    In the hard phase the gates are folded already and the model is sliced. Before, the shape is still the full one, and
    the gates of the coming step's evaluation are folded into it.
    """
    gates = []
    for name, settings in config.pruners.items():
        if settings.structures:
            gate = GatePruner(name, settings, model, config.train.num_steps, config.seed)
            gate.forward.remove()
            gate.restore(reader.gates(name), reader.manifest["trainer"]["pruners"].get(name, {}))
            gates.append(gate)
    if not gates:
        return Structures()
    hard = {gate.hardened for gate in gates}
    if len(hard) > 1:
        raise CheckpointError(f"{reader.dir} has pruners in and before their hard phase: export one in which all are.")
    sites = [site for gate in gates for site in gate.sites]
    z = {site: value for gate in gates for site, value in gate.forward_gates().items()}
    flags = {site: keep for gate in gates for site, keep in gate.keep_flags().items()}
    if not hard.pop():
        flags = {site: torch.ones_like(keep) for site, keep in flags.items()}
    stock = all(gate.budget.hf_compatible for gate in gates)
    keep = {site: flag.bool() for site, flag in flags.items()}
    folded = {site: torch.where(keep[site], value, torch.ones_like(value)) for site, value in z.items()}
    return Structures(gates, slicing(hf_config, gates[0].anatomy, sites, keep, folded, stock), z)
