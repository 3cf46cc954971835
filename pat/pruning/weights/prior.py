"""What is known of weights before any evidence, added to the evidence: standing = S + c Q.

# o outputs and i inputs of a linear map, x what goes into it on calibration samples
# G groups that are ranked together: all matrices, or each by itself

    Q_oi = W_oi^2 m_i      m = 1: the magnitude; or calibrated, m_i = E[x_i^2] / mean_j E[x_j^2]: Wanda's order
    c = weight * RMS(S) / mean(Q)      over all weights of the group, on all ranks; 1 while S is 0: Q alone

Q is the mean squared change of the map's outputs when the weight goes, over the mean square of an input; if all
inputs have one size, it is W^2. S is in units of the loss, which may be a mean or a sum over tokens, and Q in those of
squared weights. No constant converts them, so each counts by its own size within what is ranked together. As m is 1 in
the mean, matrices of one ranking count as they do by magnitude: Wanda does not compare matrices. m is measured once,
before the first selection; W is that of each selection.

The mean of Q is taken because in pretrained encoders a few outliers dominate its RMS. c is computed at a selection from
what a checkpoint holds, so it is no state; m is. Sums of fp64 depend slightly on how ranks cut the shards: c keeps BITS
bits, far fewer than agree, so it is the same number for any cut.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from pat.common.comm import Comm
from pat.common.typed import floats
from pat.models.experts import maps
from pat.pruning.calibration.journal import Journal
from pat.pruning.calibration.statistics import NOTHING_GOES_IN, SquaredNorm
from pat.pruning.calibration.walk import NotCalibrated, Walk, warn_of_unused
from pat.pruning.scopes import Scope
from pat.pruning.weights.kernels import masked_sum_of_squares
from pat.pruning.weights.shard_state import MaskedShard

BITS = 8


class Prior:
    """The prior of one pruner's matrices."""

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],  # as stored
        transposed: Collection[str],  # those stored as (i, o)
        scope: Scope,
    ) -> None:
        self.shapes, self.transposed = shapes, transposed
        groups = {group: g for g, group in enumerate(dict.fromkeys(map(scope.group, shapes)))}
        self.group = {name: groups[scope.group(name)] for name in shapes}
        self.inputs: dict[str, Tensor] = {}  # fp32 m, (i,) or of experts (E, i), by parameter, the same on every rank;
        # {}: 1, or not measured yet

    def measure(
        self,
        walk: Walk,
        journal: Journal,
        removed: Collection[str] = (),  # matrices that gates have removed whole
    ) -> None:
        """Measure m of every matrix, in the model as it is; m = 1 in what is removed, and in an expert into which
        nothing goes. ValueError where all inputs are 0. Collective."""
        for layer in walk:
            if (known := journal.known(layer)) is not None:
                self.inputs |= dict(known)
                continue
            own = [name for name in self.shapes if name.startswith(f"{layer.name}.")]
            for name in (name for name in own if name in removed):
                *several, rows, columns = self.shapes[name]
                self.inputs[name] = torch.ones(*several, rows if name in self.transposed else columns)
                journal.put(name, self.inputs[name])
            names = {name: list(maps(name, self.shapes[name])) for name in own if name not in removed}
            every = [each for several in names.values() for each in several]
            found = layer.collect({each: (SquaredNorm,) for each in every}) if every else {}
            unused: list[str] = []
            for name, several in names.items():
                means = torch.stack([found[each][SquaredNorm] for each in several])
                used = (means > 0).any(1)
                if not used.any():
                    raise NotCalibrated(f"{name} cannot be ranked by its inputs: {NOTHING_GOES_IN}")
                m = means.div(means[used].mean()).float()
                m[~used] = 1.0
                unused += [each for each, seen in zip(several, used, strict=True) if not seen]
                self.inputs[name] = m if len(self.shapes[name]) > 2 else m[0]
                journal.put(name, self.inputs[name])
            warn_of_unused(walk, unused)
            journal.write(layer)

    def squares(self, name: str, start: int, dense: Tensor) -> Tensor:
        """Q of a run of a matrix's elements from `start` on, (n,) fp32."""
        return dense * dense * self._along(name, start, dense) if self.inputs else dense * dense

    def coefficients(self, states: Sequence[MaskedShard], weight: float, comm: Comm) -> dict[str, float]:
        """{matrix: c}, with c = weight * RMS(S) / mean(Q) over all that is ranked together; 1 while S is 0.
        Collective."""
        pieces = [
            (
                self.group[s.name],
                state.score[s.part],
                state.dense[s.part] * self._along(s.name, s.start, state.dense[s.part]).sqrt()
                if self.inputs
                else state.dense[s.part],
            )
            for state in states
            if state.score is not None and state.dense is not None
            for s in state.shard.segments
        ]
        found = coefficients(pieces, len(set(self.group.values())), weight, comm)
        return {name: found[g] for name, g in self.group.items()}

    def _along(self, name: str, start: int, dense: Tensor) -> Tensor:
        """(n,) m of each element's input."""
        *_, rows, columns = self.shapes[name]
        m = self.inputs[name].to(dense.device)
        first, last = start // columns, -(-(start + dense.numel()) // columns)
        lines = torch.arange(first, last, device=dense.device)  # of all matrices that are in one, one after the other
        if name in self.transposed:
            matrix = m.view(-1)[lines, None].expand(-1, columns)
        else:
            matrix = m.view(-1, columns)[lines // rows]
        return matrix.reshape(-1)[start - first * columns :][: dense.numel()]


def coefficients(
    pieces: Sequence[tuple[int, Tensor, Tensor]],  # (group, score (n,) fp32, root of Q (n,) fp32)
    num_groups: int,
    weight: float,
    comm: Comm,
) -> list[float]:
    """(G,) c of every group. Collective."""
    sums = torch.zeros(3, num_groups, dtype=torch.float64)
    for g, score, root in pieces:
        sums[0, g] += masked_sum_of_squares(score).cpu()
        sums[1, g] += masked_sum_of_squares(root).cpu()
        sums[2, g] += score.numel()
    of_groups = zip(*(floats(row) for row in comm.sum(sums)), strict=True)
    return [_rounded(weight * math.sqrt(s * n) / w) if s and w else 1.0 for s, w, n in of_groups]


def _rounded(c: float) -> float:
    """Rounded to BITS bits, so that fp32 holds it."""
    if not math.isfinite(c):
        return c
    mantissa, exponent = math.frexp(c)
    return math.ldexp(round(mantissa * (1 << BITS)), exponent - BITS)
