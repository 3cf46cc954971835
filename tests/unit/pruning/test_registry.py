"""What the registry finds, and how it refuses."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from pat.common import scan
from pat.pruning import registry
from pat.tasks import base

ALL = [(kind, name) for kind in registry.PACKAGES for name in registry.names(kind)]


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_every_class_is_a_documented_frozen_dataclass(kind: str, name: str) -> None:
    cls = registry.classes(kind)[name]
    assert is_dataclass(cls) and cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}("), "no docstring"
    sourced = re.search(r"arXiv:\d{4}\.\d{4,5}|doi:10\.", cls.__doc__)
    assert sourced or kind not in ("criterion", "schedule", "structure", "gate"), "the docstring names no source"
    assert fields(cls)[0].name == "name" and cls.name == name  # type: ignore[attr-defined]
    assert OmegaConf.structured(cls), "a trainer's settings hold methods that are built when OmegaConf meets them"


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_defaults_build_unless_a_field_is_required(kind: str, name: str) -> None:
    defaults = registry.defaults(kind, name)
    required = [key for key, value in defaults.items() if value == "???"]
    if required:
        with pytest.raises(ValueError, match=f"{kind} {name} needs {', '.join(required)}"):
            registry.build(kind, defaults)
    else:
        assert registry.build(kind, defaults) == registry.build(kind, name)


@pytest.mark.parametrize("kind", registry.PACKAGES)
def test_every_file_of_a_kind_holds_a_method(kind: str) -> None:
    homes = {cls.__module__.rpartition(".")[2] for cls in registry.classes(kind).values()}
    assert homes == set(scan.files(registry.PACKAGES[kind]))


@pytest.mark.parametrize("kind", [*registry.PACKAGES, "task"])
def test_the_table_in_the_readme_names_all(kind: str, repository: Path) -> None:
    titles = {"structure": "structures", "budget": "structures: budget", "schedule": "schedule", "task": "task"}
    titles |= {"criterion": "weights: criterion", "granularity": "weights: granularity", "gate": "structures: gate"}
    (row,) = re.findall(rf"^\| {titles[kind]} \| (.*) \|$", (repository / "README.md").read_text(), re.MULTILINE)
    every = base.names() if kind == "task" else registry.names(kind)
    missing = [name for name in every if not re.search(rf"\b{name}\b", row)]
    assert missing == (["sparsity"] if kind == "budget" else []), "sparsity is the one budget of weights"


@pytest.mark.parametrize(
    ("mapping", "sentence"),
    [
        ("fisherish", "There is no criterion called 'fisherish'; allowed: alps, magnitude, movement"),
        ({"name": None}, "There is no criterion called None; allowed: alps, magnitude"),
        ({"tau": 0.1}, "A criterion needs a name; allowed: alps, magnitude"),
        ({"name": "taylor", "tau": 1}, "there is no key 'criterion.tau'; allowed in criterion: decay, name"),
        ({"name": "magnitude", "tau": 1}, "there is no key 'criterion.tau'; allowed in criterion: name"),
        ({"name": "taylor", "decay": "high"}, "criterion.decay is 'high', but must be a number"),
        ({"name": "taylor", "decay": True}, "criterion.decay is True, but must be a number"),
    ],
)
def test_refusals(mapping: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        registry.build("criterion", mapping)  # type: ignore[arg-type]


def test_whole_numbers_are_numbers_and_unions_are_read() -> None:
    assert registry.build("criterion", {"name": "taylor", "decay": 0}).decay == 0
    assert registry.build("schedule", {"name": "linear", "start": 0.1, "end": 5, "hard_from": None}).end == 5
    with pytest.raises(ValueError, match="schedule.hard_from is 'x', but must be a whole number or a number or null"):
        registry.build("schedule", {"name": "linear", "start": 0.1, "end": 5, "hard_from": "x"})


@pytest.mark.parametrize("sparsity", [1.0, -0.1, float("nan"), 90])
def test_budget_refuses(sparsity: float) -> None:
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        registry.build("budget", {"name": "sparsity", "sparsity": sparsity})


def test_the_schema_alone_refuses_methods_and_whatever_reads_a_config_knows_them() -> None:
    code = """
from pat.schema import PrunerConfig
try:
    PrunerConfig(criterion="movement")
except RuntimeError as error:
    assert "pat.pruning.registry" in str(error)
else:
    raise AssertionError("taken unread")
import pat.config.frozen
assert type(PrunerConfig(criterion="movement").criterion).__name__ == "Movement"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
