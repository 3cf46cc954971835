"""The configs that come with pat: a plan of every recipe needs neither network nor token."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pat.config import places
from pat.planning.architectures import planned
from pat.training.dry_run import attached
from tests.recipes.test_recipes import composed

# As the models' cards on the hub count them.
PARAMETERS = {
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-8B-Base": 8_190_735_360,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
}


def test_every_model_of_the_hub_that_a_recipe_names_is_there() -> None:
    files = [(places.conf_dir() / "recipe" / f"{name}.yaml").read_text() for name in places.recipes()]
    named = {str((yaml.safe_load(text).get("model") or {}).get("path")) for text in files}
    assert {path for path in named if "/" in path and not path.startswith("${")} == set(PARAMETERS)


@pytest.mark.parametrize("path", PARAMETERS)
def test_it_has_the_size_of_the_real_one(path: str) -> None:
    config = planned(composed("recipe=llama3_8b_dense", f"model.path={path}"))
    model, _ = attached(config)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[path]


def test_a_folder_and_a_revision_are_taken_as_they_are(tmp_path: Path) -> None:
    for config in (composed("recipe=parity"), composed("recipe=llama3_8b_dense", f"model.path={tmp_path}")):
        assert planned(config) is config
    of_the_hub = composed("recipe=llama3_8b_dense", "model.revision=main")
    assert planned(of_the_hub) is of_the_hub


def test_a_teacher_of_the_hub_is_known_too() -> None:
    config = planned(composed("recipe=llama3_8b_narrow", "distill=dense"))
    assert config.distill.teacher == config.model.path and str(config.model.path).startswith(str(places.conf_dir()))
