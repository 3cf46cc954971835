"""Which matrices a weight pruner takes."""

from __future__ import annotations

import pytest
from torch import nn

from pat.pruning.weights.matrices import Matrices
from tests import models
from tests.sets import thinned

OUTSIDE = ("embed", "wte", "wpe", "lm_head", "cls", "vocab_", "pooler", "predictions", "decoder.weight")


@pytest.mark.parametrize(("kind", "variant"), thinned(models.cases(), 4))
def test_all_linear_is_every_matrix_inside_the_layers_of_every_family(kind: str, variant: str) -> None:
    """Would catch embeddings, heads or norms that are taken, and projections that are missed."""
    model = models.model(kind, variant)
    matrices = Matrices.of(model)
    inside = [name for name, shape in matrices.shapes.items() if len(shape) == 2 and ".bias" not in name]
    expected = [name for name in inside if not any(word in name for word in OUTSIDE)]
    assert matrices.take(["all-linear"]) == expected and len(expected) >= 4 * models.LAYERS
    first = expected[0]
    assert matrices.take(["all-linear"], [first]) == expected[1:]
    assert matrices.take([first, "all-linear"]) == expected


def test_without_layers_all_linear_is_refused() -> None:
    matrices = Matrices.of(nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match=r"pruners.w.params=all-linear .* 0.weight|\*.weight"):
        matrices.check("pruners.w", ["all-linear"], [])
