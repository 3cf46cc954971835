"""What is ranked together, and by what: the scope of a ranking, and the standing of each of this rank's weights.

standing = what the criterion's `rank` makes of score and dense weight, + c Q where it has a prior (`weights.prior`)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from pat.pruning.criteria import Calibrated, Criterion, Place
from pat.pruning.scopes import Scope
from pat.pruning.scopes.all_matrices import Global
from pat.pruning.types import Granularity, ScoredSegment
from pat.pruning.weights.prior import Prior
from pat.pruning.weights.shard_state import MaskedShard


def check_scope(
    place: str,  # pruners.NAME
    scope: Scope,
    granularity: Granularity,
    criterion: Criterion,
    transposed: Collection[str],  # matrices that are stored as (inputs, outputs)
) -> None:
    """ValueError where the criterion or the granularity cannot rank in that scope."""
    if scope.of_rows and not granularity.single and granularity.competing:
        raise ValueError(
            f"{place}.scope={scope.name} ranks single weights within an output, and granularity "
            f"{granularity.name} has units of its own: set scope: matrix"
        )
    if transposed and granularity.oriented and not isinstance(criterion, Calibrated):
        raise ValueError(
            f"{place} takes {min(transposed)}, which is stored as (in, out): {granularity.name} would run along the "
            "wrong dimension; set granularity: weight, or of a Conv1D or experts a criterion that sees whole matrices "
            "(alps)"
        )
    across = not scope.apart and granularity.competing
    if isinstance(criterion, Calibrated) and across and not (criterion.gradient_samples and scope == Global()):
        raise ValueError(
            f"{place}.criterion={criterion.name} compares weights of one matrix by their inputs, which says nothing "
            f"across matrices, as scope={scope.name} would: set criterion.gradient_samples: 16 for example, with "
            "scope: global; or scope: matrix, or row"
        )


def check_room(
    place: str, scope: Scope, granularity: Granularity, maps: Mapping[str, tuple[int, ...]], sparsity: float
) -> None:
    """ValueError for a matrix that has to meet a target by itself, with so few units that all of them would go."""
    for name, shape in maps.items():
        units = granularity.num_units(shape)
        if granularity.pruned_units({name: shape}, sparsity, scope) == units:
            raise ValueError(
                f"{place} would remove every weight of {name}, which has {units} units of granularity "
                f"{granularity.name}: take smaller units, lower budget.sparsity, exclude it, or allow that with "
                "allow_empty_matrices: true"
            )


def num_gradient_samples(granularity: Granularity, scope: Scope, criterion: Criterion) -> int:
    """On how many samples the loss's gradients are taken: none, where no outputs or matrices compete."""
    if not isinstance(criterion, Calibrated) or not granularity.competing or scope.of_rows:
        return 0
    return min(criterion.gradient_samples, criterion.num_samples)


def scored(
    states: Sequence[MaskedShard],
    criterion: Criterion,
    seed: int,
    prior: Prior,
    coefficients: Mapping[str, float],  # c by matrix; {}: no prior
) -> list[ScoredSegment]:
    """This rank's weights with their standings."""
    found: list[ScoredSegment] = []
    for state in states:
        for s in state.shard.segments:
            score = None if state.score is None else state.score[s.part]
            assert state.dense is not None
            dense = state.dense[s.part]
            values = criterion.rank_at(Place(s.name, s.shape, s.start, seed), score, dense)
            if coefficients:
                values = values + prior.squares(s.name, s.start, dense) * coefficients[s.name]
            found.append(state.scored(s, values))
    return found
