"""Classifiers with other labels than the data. Would catch: a head whose classes silently mean something else."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, BertForSequenceClassification

from pat.models import build, heads, new_weights
from pat.schema import Config, ModelConfig, PrunerConfig
from pat.tasks import base
from tests import models

TASK = base.build({"name": "classification"})


@pytest.fixture(scope="module", params=["bert", "distilbert", "deberta-v2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with the labels neg, neutral, pos."""
    path = tmp_path_factory.mktemp(request.param)
    labels = {0: "neg", 1: "neutral", 2: "pos"}
    own = {"id2label": labels, "label2id": {v: k for k, v in labels.items()}}
    models.model(request.param, None, AutoModelForSequenceClassification, **own).save_pretrained(path)
    return path


def built(folder: Path, names: list[str], seed: int = 0, **fields: Any) -> Any:
    cfg = ModelConfig(path=str(folder), **fields)
    torch.manual_seed(seed)
    return build.build_model(cfg, TASK, torch.float32, len(names), label_names=names)


def is_head(name: str) -> bool:
    return name.split(".")[0] in ("classifier", "pre_classifier", "pooler")


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("llama", {"score"}),
        ("electra", {"classifier"}),
        ("deberta-v2", {"pooler", "classifier"}),
        ("distilbert", {"pre_classifier", "classifier"}),
        ("modernbert", {"classifier"}),
        ("xlnet", {"sequence_summary", "logits_proj"}),
    ],
)
def test_what_is_a_head_and_what_is_not(model_type: str, expected: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: a part of a new head that trains at the body's rate, or is kept where it should be replaced."""
    auto = AutoModelForSequenceClassification
    small = {"d_inner": 32, "n_layer": 1, "d_model": 16, "n_head": 2} if model_type == "xlnet" else {}
    config = AutoConfig.for_model(model_type, **small) if small else models.config(model_type)
    built = auto.from_config(config)
    found = {name.split(".")[0] for name, _ in built.named_parameters() if heads.is_of_head(type(built), name)}
    assert found == expected
    base_model = type(built.base_model)
    assert not any(heads.is_of_head(base_model, name) for name, _ in built.base_model.named_parameters())
    monkeypatch.setattr(heads, "is_deepspeed_zero3_enabled", lambda: True)
    renamed = heads.without_head(ModelConfig(path="m", replace_head=True), auto, config)["key_mapping"]
    for name, _ in built.named_parameters():
        assert any(re.match(pattern, name) for pattern in renamed) == (name.split(".")[0] in expected)


@pytest.mark.parametrize("names", [["bad", "good"], ["1", "2", "3", "4", "5"], ["pos", "neutral", "neg"]])
def test_another_head_is_refused_with_the_way_out(folder: Path, names: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        built(folder, names)
    message = str(error.value)
    assert "model.replace_head=true" in message and "neg, neutral, pos" in message and ", ".join(names) in message
    assert "\n" not in message


@pytest.mark.parametrize("names", [["bad", "good"], ["1", "2", "3", "4", "5"], ["pos", "neutral", "neg"]])
def test_a_new_head_is_new_and_the_rest_is_not(folder: Path, names: list[str]) -> None:
    old = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    new, other = (built(folder, names, seed, replace_head=True) for seed in (0, 1))
    assert [new.config.id2label[i] for i in range(len(names))] == names
    for name, weight in new.state_dict().items():
        again = other.state_dict()[name]
        if not is_head(name):
            assert torch.equal(weight, old[name]) and torch.equal(weight, again), name
        elif weight.dim() == 2:
            assert len(weight) == len(names) or "pre_" in name or "pooler" in name
            assert weight.shape != old[name].shape or not torch.equal(weight, old[name])
            assert not torch.equal(weight, again) and 0.01 < weight.std() < 0.03, name  # drawn anew, as the config says


@pytest.mark.parametrize(
    "task, kind", [("classification", "single_label_classification"), ("regression", "regression")]
)
def test_a_model_with_several_labels_a_text_becomes_one_of_the_task(task: str, kind: str, tmp_path: Path) -> None:
    """Would catch: an export for which stock code takes sigmoids, although they were trained with softmax."""
    base_model = models.model("bert", None, AutoModelForSequenceClassification, num_labels=3)
    base_model.config.problem_type = "multi_label_classification"
    base_model.save_pretrained(tmp_path)
    cfg = ModelConfig(path=str(tmp_path), replace_head=True)
    names = ["a", "b"] if task == "classification" else None
    assert build.build_config(cfg, base.build({"name": task}), label_names=names).problem_type == kind


def test_the_same_labels_keep_their_head(folder: Path) -> None:
    old = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    for names in (["neg", "neutral", "pos"], ["Neg", "Neutral", "Pos"], ["0", "1", "2"]):
        assert all(torch.equal(weight, old[name]) for name, weight in built(folder, names).state_dict().items())


def test_what_becomes_of_the_head_is_said(folder: Path) -> None:
    def note(names: list[str], **fields: Any) -> str | None:
        cfg = ModelConfig(path=str(folder), **fields)
        return build.head_note(cfg, TASK, build.build_config(cfg, TASK, len(names), label_names=names))

    assert note(["neg", "neutral", "pos"]) is None
    assert "is kept, and its labels neg, neutral, pos are taken for 0, 1, 2" in (note(["0", "1", "2"]) or "")
    assert "(neg, neutral, pos) is replaced by a new one (a, b)" in (note(["a", "b"], replace_head=True) or "")


def test_what_a_start_makes_anew_is_said_before_it(folder: Path, tmp_path: Path) -> None:
    """By the names alone: the same that the loaded model's own report has."""

    def note(path: Path, names: list[str], **fields: Any) -> str | None:
        cfg = ModelConfig(path=str(path), **fields)
        new = new_weights.names(cfg, TASK, build.build_config(cfg, TASK, len(names), label_names=names))
        return new_weights.note(cfg, new)

    assert note(folder, ["neg", "neutral", "pos"]) is None
    assert note(folder, ["a", "b"], replace_head=True) is None, "that has a sentence of its own"
    models.model("bert").save_pretrained(tmp_path / "body")
    _, loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "body", output_loading_info=True)
    said = note(tmp_path / "body", ["a", "b"]) or ""
    assert said.endswith(f"has no weights for them: {', '.join(sorted(loaded['missing_keys']))}")
    assert "classifier.weight" in said
    assert note(tmp_path / "body", ["a", "b"], init="random") is None
    (tmp_path / "body" / "model.safetensors").unlink()
    assert note(tmp_path / "body", ["a", "b"]) is None, "the start refuses that"


@pytest.mark.parametrize(
    "new, replaced, refused", [("classifier.bias", False, True), ("bert.pooler", False, False), ("", True, True)]
)
def test_a_run_without_steps_has_no_new_head(new: str, replaced: bool, refused: bool) -> None:
    """Fails if `pat prune --task classification` of a base model exports a classifier that knows nothing."""
    pruned = Config().changed(
        task__name="classification", train__num_steps=0, model__path="m", model__replace_head=replaced,
        pruners__weights=PrunerConfig(),
    )  # fmt: skip
    kind = BertForSequenceClassification
    for fine in (pruned.changed(train__num_steps=1), pruned.changed(pruners={})):
        new_weights.check_trained(fine, kind, [new])
    with (
        pytest.raises(ValueError, match="new head for task.name='classification'.* stays random")
        if refused
        else nullcontext()
    ):
        new_weights.check_trained(pruned, kind, [new])


def test_a_head_that_is_not_there_cannot_be_replaced(folder: Path, tmp_path: Path) -> None:
    models.model("bert").save_pretrained(tmp_path)
    encoder = ModelConfig(path=str(tmp_path), replace_head=True)
    config = build.build_config(encoder, TASK, 2, label_names=["a", "b"])
    with pytest.raises(ValueError, match="model.replace_head=true would be ignored"):
        build.head_note(encoder, TASK, config)
    with pytest.raises(ValueError, match="task.name='causal_lm'"):
        lm = base.build({"name": "causal_lm"})
        build.head_note(ModelConfig(path=str(folder), replace_head=True), lm, config)
