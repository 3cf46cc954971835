"""One named structure pruner: gates in the forward, and how they come to be 0.

# U units over all sites, in their order; z gate, t step (from 0)

    begin(t)   before the first forward of step t: its keep flags and gates
               dense  z = 1
               soft   ranked: z moves towards the keep flags by 1 / fade; learned: z is sampled from a
               hard   once: the budget chooses the final flags, or a calibrated cut does, which also fits the consuming
                      weights. z is folded into the weights, what is gone is zeroed with its moments, and the hooks come
                      off, but for those of removed layers and sublayers. What is removed computes 0 and has no gradient
                      Under adapters (peft) the weights are frozen and in no shard: the hooks stay and multiply by the
                      final z, and the export folds it into the merged weights; a calibrated cut fits the frozen ones
    forward    the consuming module's input x z (fp32 -> the engine's dtype), or as it is while a site's gates are all
               1; backward leaves dL/dz, summed over micro-batches
    learn(t)   after the optimizer's step, unless it was skipped: the evidence of all ranks moves scores or a

State is replicated: every rank computes the same from the same sums. It is in rank 0's pruner file.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from pat.models import adapters
from pat.models.families import anatomy as anatomy_of
from pat.pruning import registry
from pat.pruning.calibration.calibrator import Calibrator
from pat.pruning.calibration.needs import Needs
from pat.pruning.calibration.walk import Walk
from pat.pruning.gates import BY_GRADIENT, OF_NO_STEP, CalibratedGate
from pat.pruning.structures import calibrated, folding, parts, ties
from pat.pruning.structures.agreement import check_agreement
from pat.pruning.structures.gate_history import GateHistory
from pat.pruning.structures.gate_state import GateState
from pat.pruning.structures.gate_training import Moment, far_from_1, gate_training
from pat.pruning.structures.goal import Goal
from pat.pruning.structures.hooks import GatedForward
from pat.pruning.structures.sites import find_sites
from pat.pruning.structures.units import Inventory
from pat.pruning.types import PromiseBroken
from pat.schema import PrunerConfig
from pat.zero.layouts import ZeroLayout


class StructurePruner:
    """Prunes the structures that it names."""

    def __init__(self, name: str, config: PrunerConfig, model: torch.nn.Module, num_steps: int, seed: int) -> None:
        self.name, self.config, self.seed = name, config, seed
        self.method = registry.build("gate", config.gate)
        self.budget = registry.build("budget", config.budget)
        self.timeline = registry.build("schedule", config.schedule).resolve(num_steps)
        structures = [registry.build("structure", structure) for structure in config.structures]
        self.adapted = adapters.present(model)  # with adapters the weights are frozen
        self.anatomy = anatomy_of(adapters.stock(model))
        self.sites = find_sites(self.anatomy, structures)
        self.units = Inventory(self.anatomy, self.sites)
        if self.method.pooled_only and any(site.sublayer is not None for site in self.sites):
            raise ValueError(
                f"gate method {self.method.name} ranks whole layers only: structures=[layers], or another method"
            )
        if len(self.sites) < self.method.fewest:
            raise ValueError(
                f"pruners.{name}.gate={self.method.name} ranks {self.method.fewest} layers or more, and the model has "
                f"{len(self.sites)}: take another gate (similarity, taylor)"
            )
        self.budget.check(self.anatomy, self.sites)
        self.goal = Goal(self.budget, self.units)
        self.needs = self.method.needs
        self.forward = GatedForward(self.sites, model, self.needs)
        self.training = gate_training(self.method, self.budget, self.anatomy, self.sites, name, seed)
        ones = self.units.ones()
        self.state = GateState(ones, ones.bool(), self.training.initial(ones))
        self.history = GateHistory(ones)
        self.multiplied: Tensor | None = None  # (U,) z of the prepared step; None: it is not soft
        self._evidence: Tensor | None = None  # (U,) of the step that is being applied
        self.num_pruned = 0  # parameters
        self.kept_gates: dict[str, float] | None = None  # how near to 1 the learned gates of what stays ended
        self.due(0)  # raises where the schedule starts above the budget
        if isinstance(self.method, CalibratedGate):
            calibrated.check(name, self.method, self.anatomy, self.sites, self.timeline)
        if self.needs not in OF_NO_STEP:
            ties.check_first_choice(name, self.method, self.training, self.state.score, self.timeline, self.due)

    # -- figures ---------------------------------------------------------------------------------------------------

    @property
    def numel(self) -> int:
        """Prunable parameters: those that would go with all units."""
        return self.units.numel

    @property
    def target_weights(self) -> int:
        """Parameters that the budget removes in the end; where scores decide on it, as if all were equal until then."""
        return self.goal.weights

    def due(self, t: int) -> float:
        """Share of the budget that is to be removed at a step, 0 to 1."""
        return self.goal.due(self.timeline, t)

    def target(self, t: int) -> float:
        """Fraction that is to be removed at a step."""
        return self.due(t) * self.goal.sparsity

    def reachable(self, t: int) -> float:
        """The target at a step of the schedule, up to a unit."""
        return self.goal.due(self.timeline.planned, t) * self.goal.sparsity

    @property
    def left_to_hooks(self) -> list[str]:
        """Removed layers that stock models would still compute: without a norm before it, norm(h + 0) is not h."""
        keep = self.units.split(self.state.keep)
        gone = [site.name for site in self.sites if site.sublayer is None and not bool(keep[site.name].all())]
        return [] if self.anatomy.pre_norm else gone

    @property
    def hardened(self) -> bool:
        """Whether the final flags are chosen, and folded."""
        return self.state.hardened

    @property
    def selected_at(self) -> int:
        """The step up to which the final flags are chosen; -1: they are not."""
        return self.state.begun if self.state.hardened else -1

    def keep_flags(self) -> dict[str, Tensor]:
        """Per site (num_units,) uint8."""
        return self.units.split(self.state.keep.to(torch.uint8))

    @property
    def sparsity(self) -> float:
        """Fraction of the prunable parameters that is removed now, counted."""
        return self.num_pruned / self.numel

    def warning(self) -> str | None:
        """A sentence where the gates of what stays ended far from 1; None: they did not, or there are none yet."""
        return far_from_1(self.name, self.kept_gates) if self.kept_gates else None

    def counts(self) -> dict[str, list[int]]:
        """Per structure: the units that each site keeps."""
        return self.units.counts(self.state.keep)

    def forward_gates(self) -> dict[str, Tensor]:
        """Per site (num_units,) fp32: what multiplies in an evaluation now. Once folded, only what is dropped
        whole: the gradient of its output's bias would not be 0."""
        state = self.state
        if state.folded:
            z = torch.where(self.units.is_whole, state.keep.float(), torch.ones_like(state.z))
        elif state.hardened or self.timeline.phase(state.begun) == "dense":
            z = state.z
        else:
            z = self.training.evaluated(state, self._moment(state.begun))
        return self.units.split(z)

    def state_bytes(self) -> int:
        """Bytes of gate state on this rank."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    # -- the step --------------------------------------------------------------------------------------------------

    @property
    def calibration(self) -> Needs | None:
        """What has to be measured at the cut; None: the gate looks at no inputs."""
        return calibrated.needs(f"pruners.{self.name}.gate", self.method, self.anatomy, self.sites)

    def bind(self, layout: ZeroLayout, calibrator: Calibrator | None = None) -> None:
        """The shards whose weights the gates will be folded into; a calibrator, where it looks at inputs."""
        self.layout, self.calibrator = layout, calibrator

    def begin(self, t: int) -> None:
        """Prepare the forward of step `t`. Collective where flags are chosen."""
        state, line = self.state, self.timeline
        if t > state.begun and line.phase(t) != "dense" and not state.hardened:
            if line.phase(t) == "hard":
                self._harden(t)
            else:
                select = partial(self._select, t, self.due(t)) if line.is_selection_step(t) else None
                self.training.advance(state, self._moment(t), select)
        state.begun = max(state.begun, t)
        self._set_leaves(t)

    def _set_leaves(self, t: int) -> None:
        """What the hooks multiply by in step `t`: nothing while all gates are 1, unless their gradient is evidence."""
        state, phase = self.state, self.timeline.phase(t)
        self.multiplied = None  # also where a load has gone back to before the soft phase
        if state.hardened:
            return
        if phase == "soft":
            z, evaluated = self.training.gates(state, self._moment(t))
            self.multiplied = z
        else:
            wanted = self.needs in BY_GRADIENT and self.training.learns(phase)
            z, evaluated = state.z if wanted else None, None
        self.forward.set(z, evaluated, self.layout.device)

    def _select(self, t: int, progress: float) -> None:
        """The keep flags under `progress` of the budget. Collective."""
        if self.needs == "weights":
            evidence = parts.mean_square(self.layout, self.sites, self.anatomy.shapes)
            self.training.learn(self.state, evidence, self._moment(t))
        scores = self.units.split(self.training.scores(self.state))
        chosen = self.budget.choose(
            self.anatomy, self.sites, scores, progress, self.method.comparable, self.training.per_cost
        )
        ties.check_sites(f"pruners.{self.name}", self.sites, scores, chosen.keep)
        self.state.keep = self.units.join(chosen.keep)
        self._count()

    @torch.no_grad()
    def _cut(self, t: int, method: CalibratedGate) -> None:
        """The final flags by what goes into the consuming matrices, which are fitted. Collective."""
        calibrator, needs, counts = self.calibrator, self.calibration, self.goal.choice
        assert calibrator and needs
        cutter = calibrated.Cutter(method, self.anatomy, self.sites, calibrator.weights, self.seed)
        if self.budget.sparsity is not None:  # else the shape says how many units stay
            journal = calibrator.journal(self.name, t, (method, list(counts.keep)), "costs")
            costs = cutter.costs(calibrator.walk(needs), journal)
            counts = self.budget.choose(self.anatomy, self.sites, costs, comparable=method.comparable)
        kept = {name: int(flags.sum()) for name, flags in counts.keep.items()}
        journal = calibrator.journal(self.name, t, (method, kept, self.seed))
        self.state.keep = self.units.join(cutter.cut(calibrator.walk(needs, method.follows), kept, journal))
        if self.adapted:  # without adapters, folding the gates does this
            self.layout.refresh_forward()
        self._count()

    def _count(self) -> None:
        """Count what the flags remove, and check that all ranks agree. Collective."""
        self.num_pruned = self.units.removed(self.state.keep)
        self._check_agreement()

    def _check_agreement(self) -> None:
        """Every rank holds the same gates and evidence. Raises PromiseBroken. Collective."""
        check_agreement(f"the gates of pruner {self.name}", self.tensors(), self.layout.world)

    def _harden(self, t: int) -> None:
        """For good: choose, fold, and settle the hooks. Collective."""
        state = self.state
        if isinstance(self.method, CalibratedGate):
            self._cut(t, self.method)
        elif not self.timeline.clock.is_stopped(t):  # then the flags stay those of the last selection
            self._select(t, 1.0)
        final = self.training.final(state)
        final = torch.where(self.units.is_block, torch.ones_like(final), final)  # a block cannot be folded into
        state.z = torch.where(state.keep, final, torch.zeros_like(final))
        self.kept_gates = self.training.spread(state)
        if not self.timeline.clock.is_stopped(t):  # else it is less than the goal
            self.goal.settle(state.keep)
        state.hardened, state.folded = True, not self.adapted
        if state.folded:
            folding.fold(self.layout, self.sites, self.units, state.z, state.keep, self.history)
        self.settle()

    def settle(self) -> None:
        """The hooks of the hard phase: where z is folded, only dropped layers and sublayers still need theirs."""
        self.forward.settle(self.units.join(self.forward_gates()), self.layout.device)

    def gate(self, walk: Walk) -> None:
        """Let a walk compute with the final gates that are in no weight: of whole layers, or all under adapters."""
        if self.state.hardened:
            gates = self.forward_gates()
            GatedForward(self.sites, walk.skeleton, None).settle(self.units.join(gates), self.layout.device)
            walk.gates |= {name: z for name, z in gates.items() if not bool((z == 1).all())}

    def gather(self, scale: float) -> bool:
        """Take the evidence of the coming step, of all ranks; whether it is finite. `scale`: of the loss. Collective
        unless hard."""
        self._evidence = None if self.state.hardened else self.forward.evidence(self.layout.world, scale)
        return self._evidence is None or bool(self._evidence.isfinite().all())

    def learn(self, t: int, skipped: bool) -> dict[str, float]:
        """Learn from the step's evidence. Returns figures for the log."""
        evidence, self._evidence = self._evidence, None
        if self.state.hardened or skipped:
            return {}
        self.history.add(self.multiplied, self.layout.base.param_groups[0]["betas"])
        if evidence is None or not self.training.learns(self.timeline.phase(t)):
            return {}
        figures = self.training.learn(self.state, evidence, self._moment(t))
        if (kept := self.training.kept(self.state, self._moment(t))) is not None:
            self.num_pruned = self.units.removed(kept)
        return figures

    def _moment(self, t: int) -> Moment:
        return Moment.of(self.timeline, t, self.due(t))

    # -- what holds ------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """All ranks agree; in the hard phase what is gone is exactly 0: weights, or gates. Raises PromiseBroken.
        Collective."""
        self._check_agreement()
        if self.state.folded:
            folding.check(self.name, self.layout, self.sites, self.units, self.state.keep)
        elif self.state.hardened and (opened := self.forward.opened(self.state.keep)):
            raise PromiseBroken(f"the gates of {opened}, which pruner {self.name} has closed, are open")

    # -- state -----------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """What is saved as tensors, by one rank for all."""
        return self.state.tensors() | self.history.tensors() | self.training.tensors()

    def shared(self) -> dict[str, Any]:
        """What the manifest holds."""
        own = {"num_pruned": self.num_pruned, "kept_gates": self.kept_gates, "steps": self.history.steps}
        own |= {"settled": True} if self.goal.settled else {}
        return self.state.shared() | own

    def restore(self, tensors: dict[str, Tensor], shared: dict[str, Any]) -> None:
        """The state of a checkpoint, whatever its layout. ValueError where it is of other structures."""
        self.state = GateState.of(tensors, shared, self.name, sum(self.units.sizes))
        self.num_pruned, self.kept_gates = shared["num_pruned"], shared.get("kept_gates")
        self.history.load(tensors, shared)
        self.training.load(tensors)
        self.goal = Goal(self.budget, self.units)
        if shared.get("settled"):
            self.goal.settle(self.state.keep)

    def load(self, tensors: dict[str, Tensor], shared: dict[str, Any]) -> None:
        """Go on from a checkpoint, even if this pruner is already past it."""
        if self.state.hardened:
            self.forward.install_again()
        self.restore(tensors, shared)
        if self.state.hardened:
            self.settle()
        else:
            self._set_leaves(self.state.begun)
