"""The schema, and what is made of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import ValidationError

from pat import schema
from pat.common import ignored
from pat.common.annotations import choices, words
from pat.common.keys import MISSING, Section, default_of
from pat.config import compose, places, reference
from pat.config.reference import keys
from pat.pruning import registry
from pat.schema import Config, DataConfig, OptimConfig, PrunerConfig, TrainConfig
from tests.sets import thinned

METHODS = [(kind, name) for kind in registry.PACKAGES if kind != "structure" for name in registry.names(kind)]
GROUPS = {path.stem for path in (places.conf_dir() / "pruner").glob("*.yaml")}
WRONG: list[tuple[Any, dict[str, Any]]] = [
    (TrainConfig, {"num_steps": True}),
    (TrainConfig, {"num_steps": 1.5}),
    (TrainConfig, {"num_steps": 1.0}),
    (TrainConfig, {"num_steps": "3"}),
    (TrainConfig, {"num_steps": -1}),
    (TrainConfig, {"steps": 3}),
    (OptimConfig, {"lr": True}),
    (OptimConfig, {"lr": float("inf")}),
    (OptimConfig, {"lr": float("nan")}),
    (OptimConfig, {"betas": [0.9]}),
    (OptimConfig, {"betas": [0.9, 1.0]}),
    (OptimConfig, {"name": "sgd"}),
    (DataConfig, {"train": 3}),
    (DataConfig, {"sample_by": "word"}),
    (PrunerConfig, {"criterion": "nope"}),
    (PrunerConfig, {"criterion": {"name": "movement", "pror": 1.0}}),
    (PrunerConfig, {"criterion": {"name": "movement", "prior": "1"}}),
    (PrunerConfig, {"budget": {"name": "sparsity", "sparsity": 1.0}}),
    (PrunerConfig, {"budget": {"name": "sparsity"}}),
]


def sections(model: type[Section], place: str = "") -> Iterator[tuple[str, type[Section]]]:
    yield place, model
    for name, info in model.model_fields.items():
        value = default_of(info)
        if isinstance(value, Section):
            yield from sections(type(value), f"{place}{name}.")


def composed(*arguments: str) -> Config:
    found: list[Config] = []
    compose.compose(arguments, lambda config: found.append(config) or 0)
    return found[0]


@pytest.mark.parametrize("path", reference.files(), ids=str)
def test_committed_files_are_what_is_made_of_the_schema(path: Path) -> None:
    """`python -m pat.config.reference` makes them."""
    assert (reference.ROOT / path).read_text() == reference.files()[path]


def test_what_a_method_is_for_is_a_whole_paragraph() -> None:
    """Would catch: a sentence that ends where the docstring's first line does."""
    page = reference.config_md()
    assert "the weights that stay are not changed." in page
    assert "cos(input of layer i, output of layer i + 1); the first" in page


def test_the_schedule_auto_is_in_every_list_of_schedules() -> None:
    """Would catch: an editor that marks `schedule: auto`, and a table that leaves it out."""
    made: Any = reference.json_schema()
    (_, names, *_) = made["$defs"]["PrunerConfig"]["properties"]["schedule"]["anyOf"]
    assert names["enum"] == ["auto", *registry.names("schedule")]
    assert "schedule.auto" not in made["$defs"]
    assert "| auto, cubic, exponential, linear," in reference.config_md()
    assert "#   schedule     auto, cubic," in reference.config_yaml()


def test_the_base_config_has_each_key_with_its_default() -> None:
    content = yaml.safe_load(reference.config_yaml())
    for place, model in sections(Config):
        for name, info in model.model_fields.items():
            default: Any = content
            for part in f"{place}{name}".split("."):
                default = default[part]
            if not isinstance(default, dict) and "composed" not in keys.extra(info):
                assert default == default_of(info), place + name


def test_every_key_is_described() -> None:
    for place, model in [*sections(Config), *sections(PrunerConfig, "pruners.NAME.")]:
        for name, info in model.model_fields.items():
            nested = place == "" and name not in ("seed", "pruners")
            assert info.description or nested, f"{place}{name} says nothing"


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_every_field_of_a_method_is_described(kind: str, name: str) -> None:
    """By the comment behind it: `tau: float = 0.1  # on sigma(S)`."""
    for key, info in registry.settings(kind, name).model_fields.items():
        assert info.description, f"{kind} {name}: {key} has no comment behind it"


@pytest.mark.parametrize(("model", "given"), WRONG, ids=lambda value: str(value))
def test_what_does_not_fit_is_refused(model: type[Section], given: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        model(**given)


def test_whole_numbers_are_steps_and_numbers_with_a_point_are_fractions() -> None:
    given = ["recipe=parity", "distill.teacher=/x", "distill.weight=1", "distill.start=1", "distill.end=0.5"]
    with pytest.raises(ValueError, match="with train.num_steps=0 nothing learns from a teacher: take distill=none"):
        composed(*given, "train.num_steps=0")
    config = composed(*given)
    assert type(config.distill.start) is int and type(config.distill.end) is float
    assert type(config.distill.weight) is float
    schedule = composed("recipe=parity", "pruners.weights.schedule.start=0.1").pruners["weights"].schedule
    assert type(schedule.start) is float and type(schedule.end) is int


def test_values_of_the_environment_are_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKS", "4")
    assert composed("recipe=parity", "engine.world_size=${oc.env:RANKS}").engine.world_size == 4


@pytest.mark.parametrize(
    ("overrides", "words"),
    thinned(
        [
            ("+pruners.weights.criterion.pror=1", ["'pruners.weights.criterion.pror'", "did you mean prior"]),
            ("+pruners.weights.criterion.prior=x", ["pruners.weights.criterion.prior"]),
            ("pruners.weights.schedule.select_every=true", ["pruners.weights.schedule.select_every"]),
            ("pruners.weights.masked_grad.name=x", ["pruners.weights.masked_grad.name"]),
            ("optim.betas=[0.9,2]", ["optim.betas.1"]),
            ("pruners.weights.scope=layer", ["pruners.weights.scope", "global, matrix"]),
        ],
        2,
    ),
)
def test_the_place_is_named(overrides: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        composed("recipe=parity", *overrides.split())
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value), error.value


@pytest.mark.parametrize(
    ("key", "overrides"),
    thinned(
        [
            ("optim.implementation", "optim.name=fused_adam optim.implementation=loop"),
            ("optim.head_lr", "optim.head_lr=0.1"),
            ("optim.min_lr_ratio", "optim.min_lr_ratio=0.1 optim.lr_schedule=constant"),
            ("optim.no_decay", "optim.weight_decay=0 optim.no_decay=['*']"),
            ("data.delimiter", "data.delimiter=tab"),
            ("data.quote_char", "data.quote_char=null"),
            ("data.encoding", "data.encoding=latin-1"),
            ("data.sample_by", "data.sample_by=document"),
            ("data.subset", "data.subset=x"),
            ("data.eval", "data.eval=x"),
            ("data.eval_fraction", "data=json data.train=x data.eval=y data.eval_fraction=0.1"),
            ("data.generated", "data=json data.train=x data.generated.num_words=3"),
            ("data.text_pair_column", "data.text_pair_column=x"),
            ("data.label_column", "data.label_column=x"),
            ("task.class_weights", "task.class_weights=balanced"),
            ("task.loss_on", "task.loss_on=all"),
            ("task.loss_chunk_tokens", "task=classification task.loss_chunk_tokens=3"),
            ("model.revision", "model.revision=x"),
            ("model.replace_head", "model.replace_head=true"),
            ("engine.reduce_dtype", "engine.dtype=fp32 engine.reduce_dtype=model"),
            ("distill.temperature", "distill.temperature=2"),
            ("distill.layer_map", "distill.teacher=x distill.weight=1 distill.layer_map=[0]"),
            ("peft.alpha", "peft.alpha=2"),
            ("pruners.weights.masked_grad.sr_ste", "pruners.weights.masked_grad.sr_ste=0.1"),
            (
                "pruners.weights.scope",
                "pruners.weights.scope=matrix pruners.weights.granularity=n_of_m pruners.weights.granularity.n=1 "
                "pruners.weights.granularity.m=4",
            ),
        ],
        3,
    ),
)
def test_a_key_that_another_makes_void_is_refused(key: str, overrides: str) -> None:
    with pytest.raises(ValueError, match=rf"^{key} is .*ignored"):
        composed("recipe=parity", *overrides.split())


def test_a_recipe_may_leave_a_fraction_to_its_heirs() -> None:
    config = composed("recipe=llama3_8b_chat")
    assert config.data.eval and config.data.eval_fraction == 0.005


def test_every_condition_names_a_key() -> None:
    whole = Config(pruners={"p": PrunerConfig()})
    for place, model in [*sections(Config), *sections(PrunerConfig, "pruners.p.")]:
        for name, info in model.model_fields.items():
            extra = info.json_schema_extra
            for condition in (
                re.split(f",|{ignored.OR}", str(extra["only_with"]))
                if isinstance(extra, dict) and "only_with" in extra
                else []
            ):
                key, _, allowed = ignored._read(condition)
                first, _, _ = key.removeprefix(".").partition(".")
                known = model.model_fields if key.startswith(".") else type(whole).model_fields
                assert first in known and allowed != [""], f"{place}{name}: {condition}"


@pytest.mark.parametrize("group", thinned(sorted(GROUPS), 2))
def test_groups_of_pruners(group: str, tmp_path: Path) -> None:
    """One line selects the methods; each can be replaced from the command line, and so can the group."""
    (tmp_path / "recipe").mkdir()
    dense = "# @package _global_\ndefaults:\n  - parity\n"
    (tmp_path / "recipe" / "mine.yaml").write_text(dense + f"  - override /pruner@pruners.weights: {group}\n")
    own = ["--config-dir", str(tmp_path), "recipe=mine"]
    if group in ("l0", "obs"):
        gate = [
            "pruners.weights.params=[]",
            "pruners.weights.structures=[ffn]",
            "pruners.weights.budget={keep: {ffn: 64}}",
        ]
        with pytest.raises(ValueError, match="pruners.weights.budget"):  # the sparsity of the recipe is not a shape's
            composed(*own, *gate)
        return
    more = ["pruners.weights.granularity.n=1", "pruners.weights.granularity.m=5"] if group == "n_of_m" else []
    assert composed(*own, *more).pruners["weights"].criterion.name == ("magnitude" if group == "n_of_m" else group)
    replaced = composed(*own, *more, "pruners.weights.criterion.name=taylor").pruners["weights"]
    assert replaced.criterion == registry.build("criterion", "taylor")
    other = composed("recipe=parity", f"pruner@pruners.weights={group}", *more).pruners["weights"]
    assert other == composed(*own, *more).pruners["weights"]


def test_a_config_changes_by_a_validated_copy() -> None:
    config = composed("recipe=parity")
    changed = config.changed(seed=3, train__num_steps=5)
    assert (changed.seed, changed.train.num_steps, config.seed, config.train.num_steps) == (3, 5, 0, 30)
    with pytest.raises(ValueError):
        config.changed(train__num_steps=-1)
    assert TrainConfig().num_steps == MISSING, "no default for a choice of the user's"


def test_a_setting_of_one_pruner_changes_and_another_is_added() -> None:
    config = composed("recipe=parity")
    start = {"name": "one_shot", "start": 3}
    changed = config.changed(
        pruners__more=config.pruners["weights"], pruners__weights__schedule=start, data__generated__num_words=9
    )
    assert list(changed.pruners) == ["weights", "more"] and list(config.pruners) == ["weights"]
    assert changed.pruners["more"] == config.pruners["weights"] != changed.pruners["weights"]
    assert changed.pruners["weights"] == config.pruners["weights"].changed(schedule=start)
    assert (changed.data.generated.num_words, config.data.generated.num_words) != (9, 9)
    with pytest.raises(ValueError, match="pruners.weights.schedule.*cubic"):
        config.changed(pruners__weights__schedule="cubik")
    with pytest.raises(ValueError, match="there is no key 'train.num_step'.*did you mean num_steps"):
        config.changed(train__num_step=3)


def test_a_config_cannot_be_assigned_to() -> None:
    """All that was checked when it was made stays so: whoever needs other values makes another config."""
    config: Any = composed("recipe=parity")
    found = [config, *(getattr(config, name) for name in type(config).model_fields)]
    found = [one for one in found if isinstance(one, Section)]
    found += [config.data.generated, config.pruners["weights"], config.pruners["weights"].masked_grad]
    found += [schema.Limit(ratio=1.05)]
    declared = {value for value in vars(schema).values() if isinstance(value, type) and issubclass(value, Section)}
    assert {type(one) for one in found} == declared - {Section}
    for section in found:
        for name in type(section).model_fields:
            with pytest.raises(ValidationError, match="frozen"):
                setattr(section, name, getattr(section, name))
    pruner = config.pruners["weights"]
    for method in (pruner.granularity, pruner.criterion, pruner.budget, pruner.schedule):
        with pytest.raises(FrozenInstanceError):
            method.name = "other"


def test_choices_are_in_one_order_whatever_was_imported_before() -> None:
    """Python caches unions by equality, and two orders of a Literal are equal: the first one written is returned."""
    _ = Literal["low", "high"] | None  # as another package might have written it
    assert choices(Literal["high", "low"] | None) == ["high", "low", None]
    assert words(Literal["high", "low"] | int) == "high or low or a whole number"
