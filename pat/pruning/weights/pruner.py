"""One named weight pruner: keep flags, scores and dense weights beside this rank's optimizer shards.

# n elements of a shard, t the step (from 0), W dense weight, M mask, S score, G gradient of the effective weight W * M

A step in the soft phase, from the base optimizer's own hooks:

    t is a selection step:  M = select(rank(S, W)) to the schedule's target, from the evidence of earlier steps
    before:  S = update(S, W, G)        the evidence, at masked weights too
             G = G * M                  or straight-through
             W = W * (1 - lr * wd * M)  decoupled decay of living weights; the group's own weight decay is 0
    after :  the shard = W * M, which DeepSpeed casts and gathers as always

In the hard phase only M stays: W * M has become the weight, dead weights have neither gradient nor moments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pat.common.comm import LOCAL
from pat.common.typed import ints
from pat.models.experts import apart, parameter_of
from pat.pruning import registry, scopes
from pat.pruning.calibration.calibrator import Calibrator
from pat.pruning.calibration.needs import Needs
from pat.pruning.criteria import Calibrated
from pat.pruning.scopes.all_matrices import Global
from pat.pruning.scopes.matrix import Matrix
from pat.pruning.types import Granularity, PromiseBroken
from pat.pruning.weights import calibrated, prior, ranking, ties, whole
from pat.pruning.weights.allocation import Weighing, weigh
from pat.pruning.weights.kernels import make_kernels
from pat.pruning.weights.matrices import Matrices
from pat.pruning.weights.shard_state import MaskedShard
from pat.schema import PrunerConfig
from pat.zero.layouts import Piece, ZeroLayout


class WeightPruner:
    """Prunes the matrices that its patterns name."""

    def __init__(
        self, name: str, config: PrunerConfig, matrices: Matrices, num_steps: int, seed: int, kernels: str = "auto"
    ) -> None:
        self.name, self.config, self.seed = name, config, seed
        self.criterion = registry.build("criterion", config.criterion)
        self.granularity: Granularity = registry.build("granularity", config.granularity)
        self.scope = scopes.build(config.scope)
        self.budget = registry.build("budget", config.budget)
        self.timeline = registry.build("schedule", config.schedule).resolve(num_steps)
        matrices.check(f"pruners.{name}", config.params, config.exclude)
        self.shapes = {n: matrices.shapes[n] for n in matrices.take(config.params, config.exclude)}
        # What is ranked as a matrix, outputs first: calibrated criteria cut the matrix of each expert by itself.
        whole = {n: matrices.as_map(n) for n in self.shapes}
        self.maps = apart(whole) if isinstance(self.criterion, Calibrated) else whole
        self.routed = matrices.routed
        self.transposed = matrices.transposed & self.shapes.keys()
        for n, shape in self.maps.items():
            self.granularity.validate(parameter_of(n), shape)
        self.granularity.validate_target(self.budget.sparsity)
        self.timeline.target(0, self.budget.sparsity)  # raises where the schedule starts above the budget
        if self.criterion.threshold is not None:
            self.granularity.select_threshold([], self.criterion.threshold, LOCAL)  # raises where it cannot
        place = f"pruners.{name}"
        ranking.check_scope(place, self.scope, self.granularity, self.criterion, self.transposed)
        if not config.allow_empty_matrices and self.scope.apart:
            ranking.check_room(place, self.scope, self.granularity, self.maps, self.budget.sparsity)
        ties.check_first_choice(place, self.criterion, self.timeline, self.budget.sparsity)
        calibrated.check(place, self.criterion, config.masked_grad.name, matrices.unseen(self.shapes))
        self.prior = prior.Prior(self.shapes, self.transposed, self.scope if self.granularity.competing else Matrix())
        self.kernels = make_kernels(self.criterion, config.masked_grad, kernels)
        self.selected_at = -1  # step of the last selection
        self.hardened = False
        self.num_pruned = 0  # weights, over all ranks
        self.emptied_before: Callable[[], set[str]] = set  # matrices that gates have removed whole
        self.states: list[MaskedShard] = []

    # -- wiring ----------------------------------------------------------------------------------------------------

    @property
    def numel(self) -> int:
        """Prunable weights, over all ranks."""
        return sum(map(math.prod, self.shapes.values()))

    @property
    def target_weights(self) -> int:
        """Weights that the budget removes in the end: whole units, over all ranks."""
        return self._weights(self.budget.sparsity)

    def _weights(self, sparsity: float) -> int:
        units = self.granularity.pruned_units(self.maps, sparsity, self.scope)
        return units * self.granularity.weights_per_unit

    def target(self, t: int) -> float:
        """Fraction that is to be removed at a step; once the schedule is stopped, that of the last selection."""
        chosen = min(t, self.selected_at) if self.timeline.clock.is_stopped(t) else t
        return self.timeline.target(chosen, self.budget.sparsity)

    def reachable(self, t: int) -> float:
        """What whole units can remove of the target at a step of the schedule."""
        return self.granularity.reachable(self.timeline.planned.target(t, self.budget.sparsity))

    @property
    def sparsity(self) -> float:
        """Fraction of the prunable weights that the masks remove now, counted."""
        return self.num_pruned / self.numel

    @property
    def calibration(self) -> Needs | None:
        """What has to be measured at a cut, or once for a prior; None: the criterion looks at no inputs."""
        back = ranking.num_gradient_samples(self.granularity, self.scope, self.criterion)
        place = f"pruners.{self.name}.criterion"
        return calibrated.needs(place, self.criterion, apart(self.maps), back, self.routed)

    def bind(self, layout: ZeroLayout, calibrator: Calibrator | None = None) -> None:
        """Take the shards that hold this pruner's parameters; a calibrator, where it looks at inputs."""
        self.layout, self.calibrator = layout, calibrator
        for shard in layout.shards:
            if shard.segments and shard.segments[0].name in self.shapes:
                assert all(s.name in self.shapes for s in shard.segments), "a shard mixes two pruners"
                self.states.append(MaskedShard(shard))
        self.matrices = whole.WholeMatrices(layout, self.states, self.shapes, self.transposed)
        self._begin_scores()

    def _begin_scores(self) -> None:
        for state in self.states if self.criterion.needs_score else ():
            if state.score is None:
                state.score = self.criterion.initial(state.shard.view)

    # -- the step --------------------------------------------------------------------------------------------------

    def begin(self, t: int) -> None:
        """Choose the keep flags of step `t`, once it is certain and before any of it is applied. Collective."""
        line = self.timeline
        if self.hardened or line.phase(t) == "dense":
            return
        if self.selected_at < 0:
            self._enter_soft()
        first = max(self.selected_at + 1, line.start)
        if line.clock.moves(t) and any(line.is_selection_step(u) for u in range(first, t + 1)):
            self._select(t)
            self.selected_at = t
        if line.phase(t) == "hard":
            self._check_target(t)
            self._harden()

    def show_masks(self) -> None:
        """Bring what a walk over the layers sees up to date, as the step does after it."""
        for state in self.states:
            if state.dense is not None and state.keep is not None:
                self.kernels.post_soft(state.shard.view, state.dense, state.keep)

    def _enter_soft(self) -> None:
        for state in self.states:
            state.enter_soft()

    def _select(self, t: int) -> None:
        comm = self.layout.comm
        target = self.timeline.target(t, self.budget.sparsity)
        if isinstance(self.criterion, Calibrated):
            if self._weights(target) != self.num_pruned:
                self._cut(t, self.criterion, target)
            return
        threshold = self.criterion.threshold if self.timeline.phase(t) != "hard" else None
        prior = self._coefficients(t) if threshold is None else {}  # the threshold is on the score
        scored = ranking.scored(self.states, self.criterion, self.seed, self.prior, prior)
        if threshold is not None:
            self.granularity.select_threshold(scored, threshold, comm)
        elif self.scope.of_rows and self.granularity.competing:
            self.matrices.select_in_rows(scored, self.granularity, target, self.scope)
        else:
            self.granularity.select(scored, target, self.scope, comm)
        removed = self._count_removed()
        if self.num_pruned:
            tied = ties.tied_matrices(scored, list(self.shapes), comm)
            tied = tied - self.emptied_before() if tied else tied
            self._check_matrices(removed, tied)

    def _cut(self, t: int, criterion: Calibrated, target: float) -> None:
        """Layer by layer: choose by what goes into its matrices, and let the survivors take over. Collective."""
        calibrator, needs = self.calibrator, self.calibration
        assert calibrator and needs
        method = calibrated.Method(criterion, self.granularity, target, self.scope, self.seed)
        weighing = self._weigh(t, target, calibrator, needs)
        journal = calibrator.journal(self.name, t, (method, list(self.shapes), weighing.digest))
        cutter = calibrated.Cutter(method, weighing, self.matrices)
        cutter.cut(calibrator.walk(needs, criterion.follows), journal, self.emptied_before())
        removed = self._count_removed()
        self._check_matrices(removed, set())
        self._clear_moments()

    def _weigh(self, t: int, target: float, calibrator: Calibrator, needs: Needs) -> Weighing:
        """What the loss's gradients say before a cut, where the criterion asks. Collective."""
        if not needs.back:
            return Weighing()
        walk, batches, loss = calibrator.back(needs)
        weights = {name: partial(self.matrices.weights, name) for name in self.maps}
        unit = self.granularity.weights_per_unit if self.scope == Global() else None

        def taken() -> dict[str, Tensor]:
            return weigh(walk, batches, loss, weights, target, unit).tensors()

        journal = calibrator.journal(self.name, t, (self.criterion, list(self.shapes), target, unit), "gradients")
        given = {f"{i} {key}": v for i, batch in enumerate(batches) for key, v in batch.items() if torch.is_tensor(v)}
        return Weighing.of(journal.once(walk, given, taken))

    def _check_matrices(self, removed: dict[str, int], tied: set[str]) -> None:
        numel = {name: math.prod(shape) for name, shape in self.shapes.items()}
        ties.check_matrices(f"pruners.{self.name}", removed, numel, tied, self.config.allow_empty_matrices)

    def _coefficients(self, t: int) -> dict[str, float]:
        """{matrix: c}, the coefficients of the prior (`weights.prior`); {} where there is none. Collective."""
        weight = self.criterion.prior_weight(t)
        if weight and self.criterion.prior_samples and not self.prior.inputs:
            calibrator, needs = self.calibrator, self.calibration
            assert calibrator and needs
            journal = calibrator.journal(self.name, t, (self.criterion, list(self.shapes)), "inputs")
            self.prior.measure(calibrator.walk(needs), journal, self.emptied_before())
        return self.prior.coefficients(self.states, weight, self.layout.comm) if weight else {}

    def _harden(self) -> None:
        for state in self.states:
            assert state.keep is not None and state.dense is not None
            self.kernels.post_soft(state.shard.view, state.dense, state.keep)
        self._clear_moments()
        for state in self.states:
            state.enter_hard()
        self.prior.inputs = {}
        self.hardened = True

    def _clear_moments(self) -> None:
        """Zero the moments of pruned weights, which would revive them."""
        for state in self.states:
            for key in ("exp_avg", "exp_avg_sq"):
                moment = self.layout.base.state[state.shard.flat].get(key)
                if moment is not None and state.keep is not None:
                    self.kernels.pre_hard(moment.view(-1), state.keep)

    def before(self, state: MaskedShard, param: Tensor, group: dict[str, Any], t: int) -> None:
        """Base optimizer's pre-hook, once per shard."""
        assert param.grad is not None
        if not param.grad.is_contiguous():
            param.grad = param.grad.contiguous()
        grad, line = param.grad.view(-1), self.timeline
        coef, decay = self.criterion.coefficient(line.progress(t)), group["base_weight_decay"]
        group["weight_decay"] = decay if state.dense is None else 0.0
        if state.dense is not None:
            assert state.keep is not None
            self.kernels.pre_soft(state.score, state.dense, grad, state.keep, coef, group["lr"] * decay, group["lr"])
            state.buffer = param.data
            param.data = state.dense.view_as(param)
        elif state.keep is not None:  # hard
            self.kernels.pre_hard(grad, state.keep)
        elif state.score is not None:
            self.kernels.pre_dense(state.score, state.shard.view, grad, coef)

    def after(self, state: MaskedShard, param: Tensor) -> None:
        """Base optimizer's post-hook, once per shard."""
        if state.buffer is not None:
            assert state.dense is not None and state.keep is not None
            param.data, state.buffer = state.buffer, None
            self.kernels.post_soft(param.data.view(-1), state.dense, state.keep)

    # -- what holds ------------------------------------------------------------------------------------------------

    def _count_removed(self) -> dict[str, int]:
        """Count the weights of each matrix whose flag is down, over all ranks. Collective."""
        mine = dict.fromkeys(self.shapes, 0)
        for state in self.states:
            for name, count in state.removed():
                mine[name] += count
        total = self.layout.comm.sum(torch.tensor(list(mine.values()), dtype=torch.int64))
        self.num_pruned = int(total.sum())
        return dict(zip(mine, ints(total), strict=True))

    def _check_target(self, t: int) -> None:
        """At the hard step t: exactly what the budget asks for, or what was allowed where the schedule was stopped."""
        target = self.target(t)
        expected = self._weights(target)
        if self.num_pruned != expected:
            raise PromiseBroken(
                f"pruner {self.name} removed {self.num_pruned} weights and not the {expected} that its budget of "
                f"{target} asks for ({self.num_pruned - expected:+d})"
            )

    @torch.no_grad()
    def check_zeros(self) -> None:
        """Hard phase: every pruned weight is exactly zero, in the fp32 shard and in the forward copy. Collective."""
        broken = sum(state.revived(self.layout) for state in self.states) if self.hardened else 0
        total = int(self.layout.world.sum(torch.tensor(broken, dtype=torch.int64)))
        if total:
            raise PromiseBroken(f"pruner {self.name}: {total} pruned weights are not zero in the hard phase")

    # -- state -----------------------------------------------------------------------------------------------------

    def keep_pieces(self, name: str) -> list[Piece]:
        """This rank's keep flags of a prunable parameter; each from one rank only."""
        if self.layout.replicated and self.layout.world.rank != 0:
            return []
        return [piece for state in self.states for piece in state.keep_pieces(name)]

    def state_bytes(self) -> int:
        """Bytes of mask state on this rank."""
        return sum(state.state_bytes() for state in self.states)

    def tensors(self) -> dict[str, Tensor]:
        """What is saved as tensors, by every rank of its shards; each of them once."""
        if self.layout.replicated and self.layout.world.rank != 0:
            return {}
        return {key: value for state in self.states for key, value in state.tensors(self.name).items()}

    def replicated(self) -> dict[str, Tensor]:
        """What is saved as tensors, by one rank for all."""
        return {name: value.cpu() for name, value in self.prior.inputs.items()}

    def shared(self) -> dict[str, Any]:
        """What the manifest holds."""
        return {"selected_at": self.selected_at, "hardened": self.hardened, "num_pruned": self.num_pruned}

    def load(self, reader: Any, shared: dict[str, Any]) -> None:
        """Go on from a checkpoint of any layout, even if this pruner is already past it."""
        self.selected_at, self.hardened = shared["selected_at"], shared["hardened"]
        self.num_pruned = shared["num_pruned"]
        self.prior.inputs = reader.gates(self.name)
        for state in self.states:
            state.keep = state.dense = None
        self._begin_scores()
        if self.selected_at >= 0 or self.hardened:
            self._enter_soft()
        for state in self.states:
            if self.hardened:
                state.enter_hard()
            state.load(lambda kind, s: reader.pruner(kind, self.name, s.name, s.start, s.numel))
