"""What a dry run says of a model whose layers cannot be calibrated, or that sees what it should not."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from pat.models import families
from pat.pruning.calibration.calls import NotCalibrated
from pat.schema import Config, PrunerConfig
from pat.tasks import base
from pat.training import dry_run, layer_by_layer
from tests import models
from tests.sets import thinned

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
SMALL = dict(zip(SIZES, (32, 2, 2, 2, 32), strict=True))


def attached(model_type: str, criterion: str = "alps", task: str = "classification", **fields: Any) -> tuple[Any, Any]:
    """The model without weights, and its pruner."""
    default = AutoConfig.for_model(model_type)
    sizes = {key: value for key, value in {**SMALL, **fields}.items() if hasattr(default, key)}
    pruner = PrunerConfig(
        params=["all-linear"], criterion={"name": criterion}, granularity="weight", scope="matrix",
        budget={"name": "sparsity", "sparsity": 0.5}, schedule={"name": "one_shot", "start": 0},
    )  # fmt: skip
    made = Config().changed(
        model__init="random", model__tokenizer="byte", model__config={"model_type": model_type, **sizes},
        task__name=task, train__num_steps=4, pruners__w=pruner,
    )  # fmt: skip
    return dry_run.attached(made, 2)


def test_a_model_with_adapters_passes() -> None:
    """Would catch: names of weights as they are without adapters, looked up in a model with them."""
    config = Config().changed(
        model__init="random", model__tokenizer="byte", model__config={"model_type": "llama", **SMALL},
        task__name="causal_lm", train__num_steps=4, peft__r=2, pruners__narrow=PrunerConfig(
            structures=["ffn"], gate={"name": "obs"}, budget={"name": "shape", "keep": {"ffn": 0.5}},
            schedule={"name": "one_shot", "start": 0},
        ),
    )  # fmt: skip
    model, pruner = dry_run.attached(config, 2)
    assert pruner.stock is not model
    layer_by_layer.check(model, pruner)


@pytest.mark.parametrize("model_type", thinned(sorted(families.families()), 3))
def test_families_with_a_file_pass(model_type: str) -> None:
    small = models.config(model_type)
    task = "causal_lm" if models.is_causal(small) else "classification"
    layer_by_layer.check(*attached(model_type, task=task, **models.OWN.get(model_type, {})))


@pytest.mark.parametrize(
    ("model_type", "sentence"),
    [
        ("albert", r"albert_layer_groups.0 is called 2 times .* take .*criterion.name=magnitude"),
        ("longformer", r"hidden states of shape \(2, 512, 32\) for \(2, 7\) tokens"),
    ],
)
def test_what_a_start_would_refuse_is_refused_before_it(model_type: str, sentence: str) -> None:
    with pytest.raises(NotCalibrated, match=sentence):
        layer_by_layer.check(*attached(model_type))
    layer_by_layer.check(*attached(model_type, "magnitude"))


@pytest.mark.parametrize("task", ["causal_lm", "chat"])
@pytest.mark.parametrize("model_type", ["bert", "roberta", "electra", "camembert", "xlnet"])
def test_a_language_model_that_sees_what_comes_next_is_refused(model_type: str, task: str) -> None:
    with pytest.raises(ValueError, match=f"A '{model_type}' sees the tokens behind each one, too"):
        base.build({"name": task}).check_model(AutoConfig.for_model(model_type))


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gpt_neox", "bart", "modernbert-decoder"])
def test_a_decoder_is_a_language_model(model_type: str) -> None:
    base.build({"name": "causal_lm"}).check_model(AutoConfig.for_model(model_type))
    base.build({"name": "causal_lm"}).check_model(models.config("roberta", is_decoder=True))


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_classifier_that_reads_padding_is_refused(task: str) -> None:
    with pytest.raises(ValueError, match="reads the last position of a row"):
        base.build({"name": task}).check_model(AutoConfig.for_model("xlnet"))
    base.build({"name": task}).check_model(AutoConfig.for_model("bert"))
