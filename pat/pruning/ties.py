"""Whether scores say anything: among equal scores the index decides, for no reason."""

from __future__ import annotations

import torch
from torch import Tensor

from pat.pruning.criteria import Criterion


def starts_equal(criterion: Criterion) -> bool:
    """Whether different weights have equal standings before the first step's evidence."""
    weights = torch.tensor([-2.0, -0.5, 1.0, 3.0])
    score = criterion.initial(weights) if criterion.needs_score else None
    standings = criterion.rank(score, weights) + criterion.prior_weight(0) * weights.square()
    return all_equal(standings)


def all_equal(scores: Tensor) -> bool:
    """Whether there are several scores, all equal."""
    return scores.numel() > 1 and bool((scores == scores.flatten()[0]).all())
