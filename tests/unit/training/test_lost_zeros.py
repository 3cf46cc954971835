"""A model that comes pruned is not filled again in silence."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pat.common.comm import LOCAL
from pat.models import adapters
from pat.pruning.scopes import Scope
from pat.pruning.scopes.all_matrices import Global
from pat.pruning.scopes.matrix import Matrix
from pat.pruning.weights.matrices import Matrices
from pat.schema import Config
from pat.training.lost_zeros import KEEPS, _share, filled_again, lost_zeros
from tests import models


def sparse(share: float) -> Any:
    """Tiny Llama with this share of each linear map inside its layers at 0."""
    model = models.model("llama")
    for name in Matrices.of(model).linear:
        weight = model.get_parameter(name).data.view(-1)
        weight[: round(share * len(weight))] = 0.0
    return model


def config(**given: Any) -> Config:
    return Config().changed(model__path="m", train__num_steps=10, **given)


def test_zeros_that_nothing_keeps_are_named_with_the_pruner_that_would() -> None:
    said = lost_zeros(sparse(0.5), config(), (), LOCAL)
    assert said is not None and "50 % of the weights" in said and "0 in m, and" in said
    assert f"{' '.join(KEEPS)} pruners.weights.budget.sparsity=0.5" in said


def test_the_padding_of_a_partitioned_parameter_does_not_count() -> None:
    param: Any = torch.nn.Parameter(torch.empty(0))
    param.ds_numel, param.ds_tensor = 5, torch.tensor([1.0, 0.0, 9.0])  # the last of rank 1's three is padding
    assert [_share(param, replace(LOCAL, rank=rank)).tolist() for rank in (0, 1)] == [[1.0, 0.0, 9.0], [1.0, 0.0]]
    whole = torch.nn.Parameter(torch.ones(2))
    assert [_share(whole, replace(LOCAL, rank=rank)).numel() for rank in (0, 1)] == [2, 0]


def test_nothing_is_said_where_nothing_is_lost() -> None:
    model = sparse(0.5)
    assert lost_zeros(sparse(0.05), config(), (), LOCAL) is None
    assert lost_zeros(model, config(), Matrices.of(model).linear, LOCAL) is None  # a pruner's own
    assert lost_zeros(model, config().changed(train__num_steps=0), (), LOCAL) is None
    for param in model.parameters():
        param.requires_grad_(False)
    assert lost_zeros(model, config(), (), LOCAL) is None


def test_zeros_above_a_pruners_target_are_said_to_be_filled() -> None:
    """Would catch: a model of 60 % zeros that a cut to 50 % fills in silence."""
    model = sparse(0.6)
    shapes = {name: tuple(model.get_parameter(name).shape) for name in Matrices.of(model).linear}

    def said(sparsity: float, scope: Scope) -> str | None:
        pruner: Any = SimpleNamespace(name="p", shapes=shapes, scope=scope, budget=SimpleNamespace(sparsity=sparsity))
        return filled_again(model, pruner, LOCAL)

    for scope in (Global(), Matrix()):
        found = said(0.45, scope)
        assert found is not None and "60 % of the weights of pruners.p are 0 already" in found
        assert "its target is 45 %: 15 % of them count as weights that stay" in found
        assert said(0.6, scope) is None and said(0.7, scope) is None
    for name in shapes:  # as after a global cut, which empties some matrices further
        if ".0." in name:
            model.get_parameter(name).data.fill_(1.0)
    assert said(0.4, Matrix()) is not None and said(0.4, Global()) is None


def test_adapters_would_fill_a_frozen_model_when_they_are_merged() -> None:
    pytest.importorskip("peft")
    made, model = config(peft__r=4), sparse(0.5)
    adapters.inject(model, made.peft, seed=0)
    assert not any(p.requires_grad for n, p in model.named_parameters() if adapters.BASE in n)
    said = lost_zeros(model, made, (), LOCAL)
    assert said is not None and "50 % of" in said and "merging the adapters will fill them" in said
    torch.manual_seed(0)
    assert lost_zeros(adapted(0.0, made), made, (), LOCAL) is None


def adapted(share: float, made: Config) -> Any:
    model = sparse(share)
    adapters.inject(model, made.peft, seed=0)
    return model
