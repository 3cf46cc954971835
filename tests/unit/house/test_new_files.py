"""A new task and a new criterion are one new file each: whatever lists, checks or describes them finds it."""

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

from pat import tasks
from pat.commands import train
from pat.common import scan
from pat.common.keys import Section, default_of
from pat.config import compose, reference
from pat.data import sources
from pat.pruning import criteria, registry
from pat.schema import Config, DataConfig, TaskConfig
from pat.tasks import base

TASK = '''\
"""Texts with a sentence beside each, whose tokens each count by themselves."""

from dataclasses import dataclass
from typing import ClassVar

from pat.tasks.causal_lm import CausalLM


@dataclass(frozen=True)
class Beside(CausalLM):
    name: str = "beside"
    loss_on: str | None = None

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


@pytest.fixture
def new_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A task and a criterion where their packages find them."""
    added = ((tasks, "beside", TASK), (criteria, "smallest", CRITERION))
    caches = (base.classes, registry.classes, registry.settings)
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


def composed(*overrides: str) -> Config:
    found: list[Config] = []
    compose.compose(["recipe=parity", *overrides], lambda config: found.append(config) or 0)
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
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task.name=besides"], "no task.name='besides': allowed are beside, .* did you mean beside"),
        (["task=besides"], "beside"),
        (["task=causal_lm", "data.text_pair_column=b"], "task.name=causal_lm it would be ignored.* take .*=beside or "),
        (["task=beside", "data.label_column=b"], "data.label_column is 'b', but with task.name=beside"),
        (["task=beside", "task.packing=best_fit"], "task.packing is 'best_fit', but with task.name=beside"),
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
        sources.select_columns(Dataset.from_dict({"text": ["a"]}), task.columns(cfg), cfg, "train")


@pytest.mark.usefixtures("new_files")
def test_a_new_criterion_is_found() -> None:
    assert "smallest" in registry.names("criterion")
    found: Any = composed("pruners.weights.criterion.name=smallest", "pruners.weights.criterion.power=2.0")
    assert (found.pruners["weights"].criterion.name, found.pruners["weights"].criterion.power) == ("smallest", 2.0)


@pytest.mark.usefixtures("new_files")
def test_both_are_in_the_reference_and_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    made: Any = reference.json_schema()
    (names, _) = made["$defs"]["TaskConfig"]["properties"]["name"]["anyOf"]
    assert "beside" in names["enum"] and made["$defs"]["criterion.smallest"]["properties"]["power"]["default"] == 1.5
    page = reference.config_md()
    assert re.search(r"\| `text_pair_column` .*task.name=beside\\\|classification", page)
    assert re.search(r"\| `loss_on` .*task.name=beside\\\|chat", page)
    assert re.search(r"### `smallest`\n\nThe magnitude, the other.*\n\n.*\n.*\n\| `power` .* of the magn", page)
    config = reference.config_yaml()
    assert re.search(r"task: null # beside \|", config) and re.search(r"criterion .*smallest", config)
    assert train.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"criterion .*smallest", said) and re.search(r"task .*beside", said)


def test_what_tasks_take_is_in_the_schema() -> None:
    """Else a task's own field or column could not be set."""
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
