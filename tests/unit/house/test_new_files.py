"""A new task, criterion or learning rate is one new file each: whatever lists, checks or describes them finds it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hydra.core.config_store import ConfigStore

from pat import learning_rates, tasks
from pat.commands import train
from pat.common import scan
from pat.common.keys import Section, default_of
from pat.config import compose, frozen, reference, task_keys
from pat.data.columns import select_columns
from pat.pruning import criteria, registry
from pat.schema import Config, DataConfig, TaskConfig
from pat.tasks import base
from pat.training.learning_rate import lr_factor

TASK = '''\
"""Texts with a sentence beside each, whose tokens each count by themselves."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pat.tasks.causal_lm import CausalLM


@dataclass(frozen=True)
class Beside(CausalLM):
    name: str = "beside"
    loss_on: str | None = None
    window: int = 4  # tokens on either side
    side: Literal["left", "right"] | None = None  # of the sentence
    weights: Mapping[str, float] = field(default_factory=dict)  # of words

    per_sample: ClassVar[bool] = False
    keys: ClassVar[tuple[str, ...]] = ("data.text_pair_column",)

    def columns(self, cfg):
        return {"text": cfg.text_column, "text_pair": cfg.text_pair_column}
'''
CRITERION = '''\
"""Small weights stay."""

from dataclasses import dataclass

from pat.pruning.criteria.magnitude import Magnitude


@dataclass(frozen=True)
class Smallest(Magnitude):
    """The magnitude, the other way round."""

    name: str = "smallest"
    power: float = 1.5  # of the magnitude
'''
RATE = '''\
"""Half of the rate, and a quarter after the last cut."""

from dataclasses import dataclass

from pat.learning_rates import LearningRate


@dataclass(frozen=True)
class Halves(LearningRate):
    name: str = "halves"

    def at(self, moment):
        return 0.25 if moment.cuts and moment.t >= moment.cuts[-1] else 0.5
'''


@pytest.fixture
def new_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A task, a criterion and a learning rate where their packages find them."""
    added = ((tasks, "beside", TASK), (criteria, "smallest", CRITERION), (learning_rates, "halves", RATE))
    caches = (base.classes, registry.classes, registry.settings, task_keys.config_model, learning_rates.classes)
    for package, name, text in added:
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / f"{name}.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    for cache in caches:
        cache.cache_clear()
    yield
    for package, name, _ in added:
        sys.modules.pop(f"{package.__name__}.{name}", None)
    for cache in caches:
        cache.cache_clear()
    for group, name in (("task", "beside"), ("criterion", "smallest")):
        ConfigStore.instance().repo.get(group, {}).pop(f"{name}.yaml", None)


def composed(*overrides: str, recipe: str = "parity") -> Config:
    found: list[Config] = []
    compose.compose([f"recipe={recipe}", *overrides], lambda config: found.append(config) or 0)
    return found[0]


@pytest.mark.usefixtures("new_files")
def test_a_new_task_is_found() -> None:
    assert "beside" in base.names() and scan.declared("pat.tasks") == base.names()
    for how in ("task=beside", "task.name=beside"):
        config = composed(how, "task.loss_on=all", "data.source=json", "data.train=a", "data.text_pair_column=b")
        task = base.build({"name": config.task.name, "loss_on": config.task.loss_on})
        assert (task.name, task.per_sample) == ("beside", False)
        assert task.columns(config.data) == {"text": "text", "text_pair": "b"}


@pytest.mark.usefixtures("new_files")
def test_a_key_that_only_a_new_task_declares_is_one_of_the_config(tmp_path: Path) -> None:
    data = ("data.source=json", "data.train=a")
    (tmp_path / "recipe").mkdir()
    recipe = "defaults:\n  - parity\n  - override /task: beside\ntask: {window: 7, weights: {a: 0.5}}\n"
    (tmp_path / "recipe" / "mine.yaml").write_text(f"# @package _global_\n{recipe}")
    config = composed(*data, "task.side=left", "--config-dir", str(tmp_path), recipe="mine")
    task: Any = base.build(config.task)
    assert (task.window, task.side, task.weights) == (7, "left", {"a": 0.5})
    (tmp_path / "config.yaml").write_text(frozen.dump(config))
    assert frozen.load(tmp_path / "config.yaml") == config == config.changed(task__window=7)
    assert isinstance(config, Config) and isinstance(config.task, TaskConfig)
    unset: Any = base.build(composed(*data, "task=beside").task)
    assert (unset.window, unset.side, unset.weights) == (4, None, {})


def test_without_such_a_task_the_schema_is_all_there_is() -> None:
    assert task_keys.config_model() is Config


@pytest.mark.usefixtures("new_files")
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task.name=besides"], "no task.name='besides': allowed are beside, .* did you mean beside"),
        (["task=besides"], "beside"),
        (["task=causal_lm", "data.text_pair_column=b"], "task.name=causal_lm it would be ignored.* take .*=beside or "),
        (["task=beside", "data.label_column=b"], "data.label_column is 'b', but with task.name=beside"),
        (["task=beside", "task.packing=best_fit"], "task.packing is 'best_fit', but with task.name=beside"),
        (["task=causal_lm", "task.window=3"], "task.window is 3, but with task.name=causal_lm .* take .*=beside$"),
        (["task=beside", "task.widow=3"], "'task.widow'.*side, .*window; did you mean window"),
        (["task=beside", "task.window=x"], "task.window is 'x', but must be a whole number"),
        (["task=beside", "task.side=up"], "task.side is 'up'; allowed: left, right, null"),
        (["task=beside", "task.weights={a: b}"], "task.weights"),
        (["task.name=???"], "task=beside or task=causal_lm"),
        (["pruners.weights.criterion.name=smallestt"], "smallest"),
    ],
)
def test_errors_name_the_new_files(overrides: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        composed("data.source=json", "data.train=a", *overrides)


@pytest.mark.usefixtures("new_files")
def test_a_column_of_a_new_task_that_is_not_in_the_data_is_named_by_its_key() -> None:
    task, cfg = base.build({"name": "beside"}), DataConfig(text_pair_column="second")
    with pytest.raises(ValueError, match="data.text_pair_column='second' is not in data.train"):
        select_columns(Dataset.from_dict({"text": ["a"]}), task.columns(cfg), cfg, "train")


@pytest.mark.usefixtures("new_files")
def test_a_new_criterion_is_found() -> None:
    assert "smallest" in registry.names("criterion")
    found: Any = composed("pruners.weights.criterion.name=smallest", "pruners.weights.criterion.power=2.0")
    assert (found.pruners["weights"].criterion.name, found.pruners["weights"].criterion.power) == ("smallest", 2.0)


@pytest.mark.usefixtures("new_files")
def test_a_new_learning_rate_is_found() -> None:
    optim = composed("optim.lr_schedule=halves").optim
    assert [lr_factor(t, 10, optim, cuts=(4,)) for t in (3, 4)] == [0.5, 0.25]
    with pytest.raises(ValueError, match=r"no optim.lr_schedule='half': allowed are .*halves.*did you mean halves"):
        composed("optim.lr_schedule=half")
    made: Any = reference.json_schema()
    (names, _) = made["$defs"]["OptimConfig"]["properties"]["lr_schedule"]["anyOf"]
    assert "halves" in names["enum"]


@pytest.mark.usefixtures("new_files")
def test_both_are_in_the_reference_and_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    made: Any = reference.json_schema()
    (names, _) = made["$defs"]["TaskConfig"]["properties"]["name"]["anyOf"]
    assert "beside" in names["enum"] and made["$defs"]["criterion.smallest"]["properties"]["power"]["default"] == 1.5
    assert made["$defs"]["TaskConfig"]["properties"]["window"]["anyOf"][0]["type"] == ["integer", "string"]
    page = reference.config_md()
    assert re.search(
        r"\| `window` \| a whole number or null .*beside: tokens .* null: 4; \*only with\* .*=beside`", page
    )
    assert re.search(r"\| `text_pair_column` .*task.name=beside\\\|classification", page)
    assert re.search(r"\| `loss_on` .*task.name=beside\\\|chat", page)
    assert re.search(r"### `smallest`\n\nThe magnitude, the other.*\n\n.*\n.*\n\| `power` .* of the magn", page)
    config = reference.config_yaml()
    assert re.search(r"  window: null # beside: tokens on either side; null: 4\n", config)
    assert re.search(r"task: null # beside \|", config) and re.search(r"criterion .*smallest", config)
    assert train.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"criterion .*smallest", said) and re.search(r"task .*beside", said)


def test_what_tasks_take_is_in_the_schema() -> None:
    """Else a column could not be set, or a committed task's field were not described in the schema."""
    keys = {
        f"{section}.{name}"
        for section, info in Config.model_fields.items()
        if isinstance(default_of(info), Section)
        for name in type(default_of(info)).model_fields
    }
    conditional = {f"task.{name}" for name in TaskConfig.model_fields} - {"task.name"}
    for name, cls in base.classes().items():
        assert {f.name for f in fields(cls)} <= set(TaskConfig.model_fields), name
        assert set(cls.keys) <= keys, name
    assert all(base.taking(key) for key in conditional), "a key that no task takes"
