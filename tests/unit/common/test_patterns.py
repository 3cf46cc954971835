"""No list of name patterns lets a typing error pass: what matches nothing is an error that says what was meant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from pat.common import patterns
from pat.common.annotations import options
from pat.common.keys import Section
from pat.models import adapters, trainable
from pat.pruning.pruner import Pruner
from pat.schema import Config, OptimConfig, PeftConfig, PrunerConfig
from tests import models as small

# Lists of text in the schema that are not patterns of names in the model.
NOT_PATTERNS = {"engine.deepspeed_untested", "logger.tags", "pruners.structures"}

Use = Callable[[nn.Module, list[str]], Any]


def trained(model: nn.Module, **optim: Any) -> set[str]:
    config = Config(optim=OptimConfig(lr=1.0, **optim))
    trainable.choose_trainable(model, config)
    return {name for name, param in model.named_parameters() if param.requires_grad}


def pruned(model: nn.Module, params: list[str], exclude: list[str]) -> set[str]:
    weights = PrunerConfig(
        params=params, exclude=exclude, granularity="weight", criterion="magnitude",
        budget={"name": "sparsity", "sparsity": 0.5}, schedule={"name": "one_shot", "start": 2},
    )  # fmt: skip
    pruner = Pruner(Config().changed(train__num_steps=10, pruners__weights=weights))
    pruner.attach(model)
    return set(pruner.owner)


def adapted(model: nn.Module, **peft: Any) -> None:
    pytest.importorskip("peft")
    adapters.inject(model, PeftConfig(r=2, **peft), seed=0)


# Each list of patterns: how it is used, one that matches, one with a typing error, what was meant.
LISTS: dict[str, tuple[Use, str, str, str]] = {
    "optim.trainable": (lambda m, p: trained(m, trainable=p), "*.mlp.*", "*.self_atn.*", "*.self_attn.*"),
    "optim.no_decay": (lambda m, p: trained(m, no_decay=p), "*norm*", "*.embed_token.*", "*.embed_tokens.*"),
    "pruners.params": (lambda m, p: pruned(m, p, []), "*.mlp.*", "*.q_prj.weight", "*.q_proj.weight"),
    "pruners.exclude": (lambda m, p: pruned(m, ["*_proj.weight"], p), "*.mlp.*", "*.atention.*", ""),
    "peft.target_modules": (lambda m, p: adapted(m, target_modules=p), "q_proj", "v_porj", "v_proj"),
    "peft.modules_to_save": (lambda m, p: adapted(m, modules_to_save=p), "input_layernorm", "lm_haed", "lm_head"),
}  # fmt: skip


def lists_of_text(cls: Any, prefix: str = "") -> list[str]:
    """The keys of the schema that hold a list of text."""
    found = []
    for name, info in cls.model_fields.items():
        default = getattr(cls(), name)
        if isinstance(default, Section):
            found += lists_of_text(type(default), f"{prefix}{name}.")
        elif list[str] in (kinds := options(info.annotation)) and str not in kinds:
            found.append(prefix + name)
    return found


def test_every_list_of_patterns_is_known_here() -> None:
    """A new key that is a list of text is a list of patterns until somebody says that it is none."""
    keys = set(lists_of_text(Config)) | set(lists_of_text(PrunerConfig, "pruners."))
    assert keys == LISTS.keys() | NOT_PATTERNS


@pytest.mark.parametrize("key", LISTS)
def test_each_pattern_must_match_though_another_does(key: str) -> None:
    use, good, typo, meant = LISTS[key]
    use(small.model("llama"), [good])
    use(small.model("llama"), [good, f"optional:{typo}"])
    place = key.replace("pruners.", "pruners.weights.")
    with pytest.raises(ValueError, match="matches no") as error:
        use(small.model("llama"), [good, typo])
    said = str(error.value)
    assert f"{place} has {typo!r}" in said and f"'optional:{typo}'" in said, said
    assert f"did you mean {meant!r}" in said or not meant, said


def test_an_optional_pattern_that_matches_counts() -> None:
    assert trained(small.model("llama"), trainable=["optional:*.mlp.*"]) == {
        name for name, _ in small.model("llama").named_parameters() if ".mlp." in name
    }
    left = pruned(small.model("llama"), ["*_proj.weight"], ["optional:*.mlp.*"])
    assert left and not any(".mlp." in name for name in left)
    with pytest.raises(ValueError, match="matches no parameter"):
        trained(small.model("llama"), trainable=["optional:nothing"])


BERT = [
    "bert.embeddings.word_embeddings.weight",
    *(f"bert.encoder.layer.{i}.attention.self.query.weight" for i in range(12)),
    "classifier.weight",
]


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("*.atention.*", "'*.attention.*'"),
        ("bert.encoder.layers.*", "'bert.encoder.layer.*'"),
        ("encoder.*", "'*.encoder.*'"),  # no prefix
        ("attention", "'*.attention.*'"),  # no star
        ("clasifier.*", "'classifier.*'"),
        ("*.atention.slef.*", "'*.attention.self.*'"),  # two at once
    ],
)
def test_what_was_meant(typo: str, meant: str) -> None:
    with pytest.raises(ValueError) as error:
        patterns.check("optim.trainable", [typo], BERT)
    assert f"did you mean {meant}?" in str(error.value)


def test_what_is_like_nothing_shows_what_there_is() -> None:
    with pytest.raises(ValueError) as error:
        patterns.check("optim.trainable", ["xyz"], BERT)
    assert "bert.encoder.layer.*.attention.self.query.weight, classifier.weight" in str(error.value)
    assert "\n" not in str(error.value)
