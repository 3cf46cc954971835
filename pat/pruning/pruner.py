"""The one object that the loop talks to: all named pruners, wired into the optimizer step.

attach   before DeepSpeed: which parameter belongs to which pruner; gates go into the forward
bind     after DeepSpeed: find the shards, install the optimizer's hooks and the masked norm
begin    makes the first forward ready, `step` those after it
step     wraps engine.step()
state    / load_state, by parameter name and logical index, never by rank

Keep flags change in `begin(t)` of each named pruner and nowhere else; load_state restores them. Masks begin in `step`,
once DeepSpeed is certain to take it; gates before the forward that sees them: after the step before, or in `begin`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from pat.common.hashing import MaskHash, WeightsHash
from pat.common.parameters import DTYPES
from pat.models import adapters
from pat.pruning import compatibility, nested, state_keys, timetable
from pat.pruning.calibration.calibrator import Calibrator
from pat.pruning.calibration.fitted import fitted_weights
from pat.pruning.calibration.needs import Needs
from pat.pruning.clock import Clock
from pat.pruning.seam import Seam
from pat.pruning.structures.pruner import StructurePruner
from pat.pruning.totals import Totals
from pat.pruning.types import PromiseBroken
from pat.pruning.weights.matrices import Matrices
from pat.pruning.weights.pruner import WeightPruner
from pat.schema import Config
from pat.zero.layouts import Piece, layout_of
from pat.zero.stage_parity import compute_as_everywhere


@dataclass(frozen=True)
class StepStats:
    """What one optimizer step did. Tensors stay on the device until a line is logged."""

    skipped: bool
    norm: Any  # of the masked gradient, before clipping
    phase: dict[str, str] = field(default_factory=dict[str, str])
    target: dict[str, float] = field(default_factory=dict[str, float])
    sparsity: dict[str, float] = field(default_factory=dict[str, float])
    figures: dict[str, float] = field(default_factory=dict[str, float])  # of learned gates: the gap to the target, ...
    warnings: list[str] = field(default_factory=list[str])  # what a user should know of this step


class Pruner:
    """All pruners of a run."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.weight_pruners: list[WeightPruner] = []
        self.structure_pruners: list[StructurePruner] = []
        self.peak_bytes = 0
        self.clock = Clock()

    # -- before DeepSpeed ------------------------------------------------------------------------------------------

    def attach(self, model: torch.nn.Module) -> None:
        """Match the patterns to the model's trainable parameters. Raises ValueError for what cannot be pruned."""
        config = self.config
        matrices = Matrices.of(model)
        self.stock = model if config.peft.r is None else adapters.stock(model)
        frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
        self.owner: dict[str, str] = {}
        for name, settings in config.pruners.items():
            if settings.structures:
                structures = StructurePruner(name, settings, model, config.train.num_steps, config.seed)
                compatibility.check_structures(structures, self.structure_pruners, frozen, config.peft)
                self.structure_pruners.append(structures)
                continue
            pruner = WeightPruner(name, settings, matrices, config.train.num_steps, config.seed, config.engine.kernels)
            compatibility.check_weights(pruner, self.owner, frozen)
            self.owner |= dict.fromkeys(pruner.shapes, name)
            self.weight_pruners.append(pruner)
        compatibility.check_together(self.weight_pruners, self.structure_pruners, self.stock)
        for pruner in self.weight_pruners:
            pruner.emptied_before = partial(nested.emptied, self.structure_pruners, pruner)

    # -- after DeepSpeed -------------------------------------------------------------------------------------------

    def bind(self, engine: Any) -> None:
        """Find this rank's shards and install the hooks. Without pruners DeepSpeed stays exactly as it is."""
        self.engine, self.layout = engine, layout_of(engine)
        self._finite = True
        self.calibrator = Calibrator(
            engine.module,
            self.stock,
            fitted_weights(self.layout, self.config.peft, self.stock),
            DTYPES[self.config.engine.dtype],
            self.layout.world,
            [structures.gate for structures in self.structure_pruners],
        )
        for pruner in self.pruners:
            pruner.bind(self.layout, self.calibrator)
        self.seam = Seam(self.layout, self.weight_pruners, self.config.engine.kernels)
        if self.pruners:
            self.layout.replace_norm(self.masked_norm, lambda: self._finite)
            compute_as_everywhere(engine.module, self.layout.partitioned)
        if self.weight_pruners:
            self.seam.install()

    def check_calibration(self) -> None:
        """Raise, at the start of a run, what would keep a later cut from being calibrated (`Calibrator.check`).
        Collective."""
        for pruner in self.pruners:
            measured = isinstance(pruner, WeightPruner) and pruner.prior.inputs  # once, and it has been
            if not pruner.hardened and not measured and (needs := pruner.calibration):
                self.calibrator.check(needs)

    def follow(self, clock: Clock) -> None:
        """Let all schedules go by one clock, which may hold and stop them."""
        self.clock = clock
        for pruner in self.pruners:
            pruner.timeline = replace(pruner.timeline, clock=clock)

    def begin(self, t: int) -> None:
        """Prepare the first forward of a start, which is that of step `t`. Collective."""
        for pruner in sorted(self.structure_pruners, key=lambda pruner: pruner.calibration is not None):
            pruner.begin(t)  # a calibrated cut sees what the others choose

    @torch.no_grad()
    def prune(self) -> None:
        """Remove what step 0 removes, without taking the step: for a run that only prunes. Collective."""
        self.begin(0)
        self.seam.begin(0)
        self.layout.refresh_forward()
        self.peak_bytes = max(self.peak_bytes, self.state_bytes())

    def step(self, t: int, begin_next: bool = True) -> StepStats:
        """One optimizer step with everything that pruning does in it. Collective.

        begin_next=False leaves the gates as they are: the caller looks at the model and then calls `begin(t + 1)`.
        """
        self.seam.expect(t)
        scale = self.layout.loss_scale if self.structure_pruners else 1.0
        self._finite = all([pruner.gather(scale) for pruner in self.structure_pruners])
        alive = self.layout.clip_before_step(self.masked_norm, self.config.engine.gradient_clipping)
        self.engine.step()
        stepped = self.seam.has_stepped() if self.weight_pruners else getattr(self.engine, "_step_applied", True)
        figures: dict[str, float] = {}
        for pruner in self.structure_pruners:
            learned = pruner.learn(t, not stepped or not alive or not self._finite)
            figures |= {f"{pruner.name}/{key}": value for key, value in learned.items()}
        open_before = [pruner for pruner in self.structure_pruners if not pruner.hardened]
        if begin_next:
            self.begin(t + 1)
        warnings = [said for pruner in open_before if pruner.hardened and (said := pruner.warning())]
        self.peak_bytes = max(self.peak_bytes, self.state_bytes())
        return StepStats(
            skipped=not stepped or not alive,
            norm=self.engine.get_global_grad_norm(),
            phase={p.name: p.timeline.phase(t) for p in self.pruners},
            target={p.name: p.target(t) for p in self.pruners},
            sparsity={p.name: p.sparsity for p in self.pruners},
            figures=figures,
            warnings=warnings,
        )

    def masked_norm(self) -> Tensor:
        """0-dim fp32: the norm of the still scaled gradient without that of pruned weights (`Seam.norm`). Collective.

        Infinite where the evidence of gates is not finite, which in fp16 overflows before any weight's gradient:
        DeepSpeed then skips the step.
        """
        if not self._finite:
            return torch.full((), torch.inf, device=self.layout.device)
        return self.seam.norm()

    # -- figures ---------------------------------------------------------------------------------------------------

    @property
    def pruners(self) -> list[WeightPruner | StructurePruner]:
        """The weight pruners, and then those of structures."""
        return [*self.weight_pruners, *self.structure_pruners]

    @property
    def calibrations(self) -> list[Needs]:
        """What calibrated pruners measure."""
        return [needs for pruner in self.pruners if (needs := pruner.calibration)]

    def phase(self, t: int) -> str:
        """The phase of the run at a step: the earliest of its pruners'."""
        order = ["dense", "soft", "hard"]
        phases = [p.timeline.phase(t) for p in self.pruners]
        return min(phases, key=order.index) if phases else "dense"

    @property
    def hardened(self) -> bool:
        """Whether all masks are permanent; a step that the optimizer skips puts that off."""
        return all(pruner.hardened for pruner in self.pruners)

    @cached_property
    def cuts(self) -> tuple[int, ...]:
        """The steps of the schedules at which more is pruned than before, in increasing order."""
        return tuple(sorted({t for pruner in self.pruners for t, _ in timetable.moves(pruner)}))

    def cuts_from(self, t: int) -> int:
        """How many calibrated cuts there are from step t on, if the schedules are not held again."""
        return 0 if self.clock.is_stopped(t) else sum(step > self.clock.at(t - 1) for step in self._calibrated_cuts)

    def cuts_next(self, t: int) -> bool:
        """Whether the loop's next step, t, makes a calibrated cut: its own, or that of the gates of step t + 1."""
        clock = self.clock
        return any(clock.moves(step) and clock.at(step) in self._calibrated_cuts for step in (t, t + 1))

    @cached_property
    def _calibrated_cuts(self) -> list[int]:
        """Their steps of the schedules, one for each pruner that makes one there."""
        calibrated = (pruner for pruner in self.pruners if (needs := pruner.calibration) and not needs.once)
        return [step for pruner in calibrated for step, _ in timetable.moves(pruner)]

    @property
    def first_soft_step(self) -> int | None:
        """The step at which the first mask or gate may appear."""
        return min((p.timeline.start for p in self.pruners), default=None)

    @property
    def last_hard_from(self) -> int:
        """The step of the schedules at which the last mask or gate is to become permanent."""
        return max((p.timeline.hard_from for p in self.pruners), default=0)

    @property
    def totals(self) -> Totals:
        """How many weights can go, are to go and are gone."""
        return Totals(self.weight_pruners, self.structure_pruners)

    def state_bytes(self) -> int:
        """Bytes of pruner state on this rank now."""
        return sum(pruner.state_bytes() for pruner in self.pruners)

    # -- guarantees ------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """What holds at every save in the hard phase. Raises PromiseBroken. Collective."""
        for pruner in self.weight_pruners:
            pruner.check_zeros()
        for pruner in self.structure_pruners:
            pruner.check()

    def check_finished(self) -> None:
        """What holds at the end of a run."""
        for pruner in self.pruners:
            if not pruner.hardened:
                raise PromiseBroken(
                    f"pruner {pruner.name} never reached its hard phase (step {pruner.timeline.hard_from}): "
                    "the steps from there on were skipped"
                )

    def hashes(self) -> tuple[str, str]:
        """(mask, weights) sha256 over parameters and sites of gates in name order, the same at any ZeRO stage.
        Collective."""
        masks, weights = MaskHash(), WeightsHash()
        mine = self.layout.world.rank == 0
        flags = {site: keep for pruner in self.structure_pruners for site, keep in pruner.keep_flags().items()}
        for name in sorted([*self.layout.parameters, *flags]):
            if name in flags:
                masks.update(name, flags[name])
                continue
            full = self.layout.whole(name)
            if mine:
                weights.update(name, full)
            if name in self.owner:
                keep = self.layout.assemble(name, self.keep_pieces(name), torch.uint8)
                if mine:
                    masks.update(name, keep)
        return masks.hexdigest(), weights.hexdigest()

    def keep_pieces(self, name: str) -> list[Piece]:
        """This rank's keep flags of a prunable parameter; before the soft phase all are up."""
        return [piece for pruner in self.weight_pruners if name in pruner.shapes for piece in pruner.keep_pieces(name)]

    # -- state -----------------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(this rank's tensors, what is the same on every rank)."""
        tensors = {key: value for pruner in self.weight_pruners for key, value in pruner.tensors().items()}
        if self.layout.world.rank == 0:
            for pruner in self.pruners:
                own = pruner.replicated() if isinstance(pruner, WeightPruner) else pruner.tensors()
                tensors |= {state_keys.of_gates(pruner.name, key): value for key, value in own.items()}
        return tensors, {pruner.name: pruner.shared() for pruner in self.pruners}

    def ended(self) -> None:
        """Remove all journals: the run is over. One rank only."""
        self.calibrator.surroundings.journals.remove([pruner.name for pruner in self.pruners])

    def saved(self) -> None:
        """Remove the journals: a checkpoint holds their cuts now. One rank only."""
        for pruner in self.pruners:
            self.calibrator.surroundings.journals.forget(pruner.name, pruner.selected_at)

    def load_state(self, reader: Any, shared: dict[str, Any]) -> None:
        """Fill this rank's masks, scores and dense weights, and the gates, from a checkpoint of any layout."""
        for pruner in self.structure_pruners:
            pruner.load(reader.gates(pruner.name), shared.get(pruner.name, {}))
        for pruner in self.weight_pruners:
            pruner.load(reader, shared[pruner.name])
