"""One named pruner of structures: gates in the forward, and how they come to be 0.

# U units over all sites, in their order; z gate, t step (from 0)

    begin(t)   before the first forward of step t, the only place where keep flags change:
               dense  z = 1
               soft   ranked: z moves towards the keep flags by 1 / fade; learned: z is sampled from a
               hard   once: the budget chooses the final flags; z is folded into the consuming weights; what is gone is
                      zeroed, its moments too; the hooks come off. Dead units compute 0 and have no gradient: the
                      forward and the step are the plain ones from here on
    forward    the consuming module's input x z (fp32 -> the engine's dtype); backward leaves dL/dz, summed over
               micro-batches
    learn(t)   after the optimizer's step, unless it was skipped: evidence, averaged over ranks, moves scores or a

State is replicated: every rank computes the same from the same sums. It is in rank 0's pruner file.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pat.config import PrunerConfig
from pat.models.families import anatomy as anatomy_of
from pat.pruning import registry, unit_slices
from pat.pruning.choose import Choice
from pat.pruning.gates import Learned
from pat.pruning.hooks import SiteHooks, install
from pat.pruning.inventory import Inventory
from pat.pruning.lagrangian import Lagrangian
from pat.pruning.shards import Shards
from pat.pruning.sites import find_sites
from pat.pruning.types import PromiseBroken


@dataclass
class GateState:
    """All that a resume needs besides the weights."""

    z: Tensor  # (U,) fp32, of the coming step where the method ranks
    keep: Tensor  # (U,) bool
    score: Tensor  # (U,) fp32: evidence, or the learned a
    begun: int = -1  # the last step that `begin` has made ready
    hardened: bool = False


class GatePruner:
    """Prunes the structures that it names."""

    def __init__(self, name: str, config: PrunerConfig, model: torch.nn.Module, num_steps: int, seed: int) -> None:
        self.name, self.config, self.seed = name, config, seed
        self.method = registry.build("gate", config.gate)
        self.budget = registry.build("budget", config.budget)
        self.timeline = registry.build("schedule", config.schedule).resolve(num_steps)
        structures = [registry.build("structure", structure) for structure in config.structures]
        self.anatomy = anatomy_of(model)
        self.sites = find_sites(self.anatomy, structures)
        self.units = Inventory(self.anatomy, self.sites)
        if self.method.pooled_only and any(site.sublayer is not None for site in self.sites):
            raise ValueError(f"gate {self.method.name} ranks whole layers only: structures=[layers], or another gate")
        self.budget.check(self.anatomy, self.sites)
        self.needs = self.method.needs
        self.hooks: list[SiteHooks] = install(self.sites, model, self.needs)
        self.state = self._initial()
        self.num_pruned = 0  # parameters

    def _initial(self) -> GateState:
        ones = self.units.ones()
        learned = isinstance(self.method, Learned)
        score = ones * self.method.initial if learned else torch.zeros_like(ones)
        self.lagrangian = Lagrangian(self.method, self.budget, self.anatomy, self.sites) if learned else None
        return GateState(ones, ones.bool(), score)

    # -- figures ---------------------------------------------------------------------------------------------------

    @property
    def numel(self) -> int:
        """Prunable parameters: those that would go with all units."""
        return self.units.numel

    @cached_property
    def target_weights(self) -> int:
        """Parameters that the budget removes in the end; where widths may differ by layer, of a tie of all scores."""
        return self.units.removed(self.final_of_a_tie)

    @property
    def final_of_a_tie(self) -> Tensor:
        """(U,) bool: what the budget leaves where all scores are equal."""
        return self.units.join(self._final_of_a_tie.keep)

    @cached_property
    def _final_of_a_tie(self) -> Choice:
        return self.budget.choose(self.anatomy, self.sites, self.units.split(0.0 * self.units.ones()))

    @property
    def target_sparsity(self) -> float:
        """Fraction of the prunable parameters that the budget removes in the end."""
        return self.target_weights / self.numel

    def target(self, t: int) -> float:
        """Fraction that is to be removed at a step."""
        return self.timeline.target(t, 1.0) * self.target_sparsity

    @property
    def hardened(self) -> bool:
        """Whether the final flags are chosen, and folded."""
        return self.state.hardened

    def keep_flags(self) -> dict[str, Tensor]:
        """Per site (num_units,) uint8."""
        return self.units.split(self.state.keep.to(torch.uint8))

    @property
    def sparsity(self) -> float:
        """Fraction of the prunable parameters that is removed now, counted."""
        return self.num_pruned / self.numel

    def counts(self) -> dict[str, list[int]]:
        """Per structure: the units that each site keeps."""
        return self.units.counts(self.state.keep)

    def forward_gates(self) -> dict[str, Tensor]:
        """Per site (num_units,) fp32: what multiplies in an evaluation now. In the hard phase only dropped blocks."""
        state = self.state
        if state.hardened:
            z = torch.where(self.units.is_block, state.keep.float(), torch.ones_like(state.z))
        elif isinstance(self.method, Learned) and state.begun >= self.timeline.start:
            z = self.method.mean(state.score)
        else:
            z = state.z
        return self.units.split(z)

    def target_shape(self) -> str:
        """What the budget leaves, in words; where widths may differ by layer, of a tie."""
        return self.units.in_words(self._final_of_a_tie.counts)

    def state_bytes(self) -> int:
        """Bytes of gate state on this rank."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    # -- the step --------------------------------------------------------------------------------------------------

    def bind(self, shards: Shards) -> None:
        """The shards whose weights the gates will be folded into."""
        self.shards = shards

    def begin(self, t: int) -> None:
        """Make the forward of step `t` ready. Collective where the phase becomes hard."""
        state, line = self.state, self.timeline
        if t > state.begun and t >= line.start and not state.hardened:
            if line.phase(t) == "hard":
                self._harden(t)
            elif not isinstance(self.method, Learned):
                if line.is_selection_step(t):
                    self._select(line.target(t, 1.0))
                step = 1.0 / self.method.fade
                state.z = (state.z + (state.keep.float() - state.z).clamp(-step, step)).clamp(0.0, 1.0)
        state.begun = max(state.begun, t)
        self._set_leaves(t)

    def _set_leaves(self, t: int) -> None:
        """What the hooks multiply by in step `t`: nothing while all gates are 1, unless their gradient is evidence."""
        state, device, soft = self.state, self.shards.device, self.timeline.phase(t) == "soft"
        if state.hardened:
            return
        z, evaluated = state.z, state.z
        if soft and isinstance(self.method, Learned):
            assert self.lagrangian is not None
            z = self.lagrangian.sample(state.score, t, self.seed, self.timeline.progress(t)).detach()
            evaluated = self.method.mean(state.score)
        by_gradient = self.needs == "gradient"
        wanted = soft or (by_gradient and not isinstance(self.method, Learned))
        for hook, part, mean in zip(
            self.hooks, z.split(self.units.sizes), evaluated.split(self.units.sizes), strict=True
        ):
            hook.z = part.to(device, copy=True).requires_grad_(by_gradient) if wanted else None
            hook.z_eval = mean.to(device) if soft else None

    def _select(self, progress: float) -> None:
        """The keep flags under `progress` of the budget. Collective where the evidence is in the shards."""
        if self.needs == "weights":
            evidence = unit_slices.mean_square(self.shards, self.sites, self.anatomy.shapes)
            self.state.score = self.method.update(self.state.score, evidence)
        scores = self.units.split(self._scores())
        chosen = self.budget.choose(self.anatomy, self.sites, scores, progress, self.method.comparable)
        self.state.keep = self.units.join(chosen.keep)
        self.num_pruned = self.units.removed(self.state.keep)

    def _scores(self) -> Tensor:
        state = self.state
        return self.method.open(state.score, 1.0) if isinstance(self.method, Learned) else state.score

    def _harden(self, t: int) -> None:
        """For good: fold, zero, clear, take the hooks off. Collective."""
        state, shapes = self.state, self.anatomy.shapes
        self._select(1.0)
        final = self.method.mean(state.score) if isinstance(self.method, Learned) else torch.ones_like(state.z)
        final = torch.where(self.units.is_block, torch.ones_like(final), final)  # a block cannot be folded into
        state.z = torch.where(state.keep, final, torch.zeros_like(final))
        fold = unit_slices.factors(self.sites, self.units.split(state.z), shapes, gated=True)
        alive = unit_slices.factors(self.sites, self.units.split(state.keep.float()), shapes, gated=False)
        unit_slices.multiply(self.shards, fold, moments=False)
        unit_slices.multiply(self.shards, alive, moments=False)
        unit_slices.multiply(self.shards, alive, moments=True)
        self.shards.refresh_forward()
        state.hardened = True
        self.settle()

    def settle(self) -> None:
        """The hooks of the hard phase: only dropped blocks still need theirs, output = input."""
        for hook, keep in zip(self.hooks, self.state.keep.split(self.units.sizes), strict=True):
            if hook.site.sublayer is None and not keep.all():
                hook.needs, hook.z, hook.z_eval = None, torch.zeros(1, device=self.shards.device), None
            else:
                hook.remove()

    def learn(self, t: int, skipped: bool, scale: float = 1.0) -> dict[str, float]:
        """What the step has shown. `scale`: of the loss. Returns figures for the log. Collective unless hard."""
        state = self.state
        if state.hardened:
            return {}
        evidence = self._evidence(scale)
        if skipped or evidence is None:
            return {}
        if isinstance(self.method, Learned):
            assert self.lagrangian is not None
            if self.timeline.phase(t) != "soft":
                return {}
            progress, ramp = self.timeline.progress(t), self.timeline.target(t, 1.0)
            state.score, figures = self.lagrangian.step(state.score, evidence, t, self.seed, progress, ramp)
            self.num_pruned = self.units.removed(self.method.mean(state.score) > 0)
            return figures
        state.score = self.method.update(state.score, evidence)
        return {}

    def _evidence(self, scale: float) -> Tensor | None:
        """(U,) of this step, averaged over ranks, and forgotten at its source; None where the method takes none now."""
        world = self.shards.world
        if self.needs == "weights":
            return None
        if self.needs == "gradient":
            parts = []
            for hook in self.hooks:
                grad = None if hook.z is None else hook.z.grad
                parts.append(torch.zeros(hook.site.num_units, device=self.shards.device) if grad is None else grad)
            return (world.sum(torch.cat(parts)) / (world.world_size * scale)).cpu()
        sums = [hook.sums for hook in self.hooks]
        for hook in self.hooks:
            hook.sums = None
        lines = world.sum(torch.cat([torch.zeros(n + 1, dtype=torch.float64) if s is None else s.cpu()
                                     for n, s in zip(self.units.sizes, sums, strict=True)]))  # fmt: skip
        each = [line[:-1] / line[-1].clamp(min=1.0) for line in lines.split([n + 1 for n in self.units.sizes])]
        return torch.cat(each).float()

    # -- what holds ------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """In the hard phase what is gone is exactly 0. Raises PromiseBroken. Collective."""
        if not self.state.hardened:
            return
        alive = unit_slices.factors(
            self.sites, self.units.split(self.state.keep.float()), self.anatomy.shapes, gated=False
        )
        alive_again = unit_slices.count_nonzero(self.shards, alive)
        if alive_again:
            raise PromiseBroken(f"{alive_again} weights of units that pruner {self.name} has removed are not zero")

    # -- state -----------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """What is saved as tensors, by one rank for all."""
        state, learned = self.state, {} if self.lagrangian is None else self.lagrangian.tensors()
        return {"z": state.z, "keep": state.keep.to(torch.uint8), "score": state.score} | learned

    def shared(self) -> dict[str, Any]:
        """What the manifest holds."""
        return {"hardened": self.state.hardened, "begun": self.state.begun, "num_pruned": self.num_pruned}

    def restore(self, tensors: dict[str, Tensor], shared: dict[str, Any]) -> None:
        """The state of a checkpoint, whatever its layout. ValueError where it is of other structures."""
        now = sum(self.units.sizes)
        if "keep" not in tensors or tensors["keep"].numel() != now:
            raise ValueError(
                f"the checkpoint has no gates of pruner {self.name} for {now} units: it was made with other "
                "structures; use another run.dir or run.resume=never"
            )
        self.state = GateState(
            tensors["z"], tensors["keep"].bool(), tensors["score"], shared["begun"], shared["hardened"]
        )
        self.num_pruned = shared["num_pruned"]
        if self.lagrangian is not None:
            self.lagrangian.load(tensors)

    def load(self, tensors: dict[str, Tensor], shared: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.restore(tensors, shared)
        if self.state.hardened:
            self.settle()
        else:
            self._set_leaves(self.state.begun)
