"""The smaller model that a run with gates leaves, as a function of its checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pat.checkpoint.reader import CheckpointReader
from pat.export.narrowing import Narrowing, narrowing
from pat.pruning.structures.hooks import install
from pat.pruning.structures.pruner import StructurePruner
from pat.schema import Config
from pat.zero.checkpoint_files import CheckpointError


@dataclass(frozen=True)
class Structures:
    """The structure pruners of a checkpoint, and what they make of the model."""

    pruners: Sequence[StructurePruner] = ()
    cut: Narrowing | None = None  # None: nothing is narrowed
    z: dict[str, Tensor] = field(default_factory=dict)  # per site: the gates of the forward

    @property
    def flags(self) -> dict[str, Tensor]:
        """Per site (num_units,) uint8, 1 = the unit survives, as all do while gates still move."""
        return {
            site: keep if pruner.hardened else torch.ones_like(keep)
            for pruner in self.pruners
            for site, keep in pruner.keep_flags().items()
        }

    @property
    def parameters(self) -> set[str]:
        """All of which a unit owns a part."""
        return {name for pruner in self.pruners for name in pruner.units.parameters}

    @property
    def prunable(self) -> int:
        """Parameters that would go with all units."""
        return sum(pruner.numel for pruner in self.pruners)

    @property
    def pruned(self) -> int:
        """Parameters that are gone; none while gates still move."""
        return sum(pruner.num_pruned for pruner in self.pruners if pruner.hardened)

    @property
    def stock(self) -> bool:
        """Whether stock from_pretrained loads the result."""
        return self.cut is None or getattr(self.cut.config, "pat_widths", None) is None

    def describe(self) -> list[str]:
        """What is left of each structure, for tables; nothing while gates still move: the shape is the full one."""
        return [pruner.units.in_words(pruner.counts()) for pruner in self.pruners if pruner.hardened]

    def gate_forward(self, model: nn.Module) -> None:
        """Put the checkpoint's gates into a model of the full shape."""
        for pruner in self.pruners:
            for hook in install(pruner.sites, model, None):
                z = self.z[hook.site.name]
                hook.z = None if bool((z == 1).all()) else z


def restored(reader: CheckpointReader, config: Config, model: nn.Module) -> list[StructurePruner]:
    """The structure pruners of a run, as they are in a checkpoint; `model` has the full shape, on the meta device."""
    pruners: list[StructurePruner] = []
    for name, settings in config.pruners.items():
        if settings.structures:
            pruner = StructurePruner(name, settings, model, config.train.num_steps, config.seed)
            pruner.forward.remove()
            pruner.restore(reader.gates(name), reader.manifest["trainer"]["pruners"].get(name, {}))
            pruners.append(pruner)
    return pruners


def structures(reader: CheckpointReader, config: Config, hf_config: Any, model: nn.Module) -> Structures:
    """The structure pruners of a run at a checkpoint; `model` has the full shape, on the meta device.

    In the hard phase the gates are folded already and the model is narrowed. Before, the shape is still the full one,
    and the gates of the coming step's evaluation are folded into it.
    """
    pruners = restored(reader, config, model)
    if not pruners:
        return Structures()
    hard = {pruner.hardened for pruner in pruners}
    if len(hard) > 1:
        raise CheckpointError(f"{reader.dir} was saved before every pruner was hard: export a later checkpoint.")
    sites = [site for pruner in pruners for site in pruner.sites]
    z = {site: value for pruner in pruners for site, value in pruner.forward_gates().items()}
    flags = {site: keep for pruner in pruners for site, keep in pruner.keep_flags().items()}
    if not hard.pop():
        flags = {site: torch.ones_like(keep) for site, keep in flags.items()}
    stock = all(pruner.budget.hf_compatible for pruner in pruners)
    keep = {site: flag.bool() for site, flag in flags.items()}
    folded = {site: torch.where(keep[site], value, torch.ones_like(value)) for site, value in z.items()}
    return Structures(pruners, narrowing(hf_config, pruners[0].anatomy, sites, keep, folded, stock), z)
