"""Settings of a pruner in somebody else's trainer: what is read, what is refused, how groups are split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pat.integrations.attach import Pruning
from pat.integrations.settings import Settings

WEIGHTS: dict[str, Any] = {
    "params": ["*.weight"],
    "granularity": "weight",
    "criterion": "magnitude",
    "budget": {"name": "sparsity", "sparsity": 0.5},
    "schedule": {"name": "cubic", "start": 0.1, "end": 0.6},
}


def given(**changes: Any) -> dict[str, Any]:
    return {"pruners": {"weights": {k: v for k, v in (WEIGHTS | changes).items() if v is not None}}}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "must have `pruners`"),
        ({"pruners": {"a": WEIGHTS}, "optim": {}}, "has optim; allowed: pruners, seed, kernels"),
        ({"pruners": {"a": WEIGHTS}, "defaults": []}, "name each method"),
        (given(budget=None), "no value for pruners.weights.budget"),
        (given(paramz=["*"]), "paramz"),
        ({"pruners": {"a": WEIGHTS}, "kernels": "fast"}, "allowed: auto, compile, eager"),
    ],
)
def test_unknown_and_missing_keys_are_refused_at_once(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("`", ".")):
        Pruning(settings)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"criterion": "magnitud"}, "There is no criterion called 'magnitud'"),
        ({"scope": "layer"}, "allowed: global, matrix"),
        ({"schedule": {"name": "cubic", "start": 0, "end": 90}}, "90"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_number_of_steps(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Pruning(given(**changes)).attach(torch.nn.Linear(2, 2), num_steps=50)


def test_the_examples_settings_are_read(repository: Path) -> None:
    settings = Settings.read(repository / "docs" / "examples" / "pruning.yaml")
    config = settings.config(100, task={"name": "causal_lm"})
    assert config.pruners["weights"].budget["sparsity"] == 0.5 and config.train.num_steps == 100
    assert settings.owners({"x.mlp.up.weight": (4, 4), "x.mlp.up.bias": (4,), "head.weight": (4, 4)}) == {
        "x.mlp.up.weight": "weights"
    }
