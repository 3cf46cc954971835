"""The YAML of the pages: a recipe composes, and a file of settings is what it is said to be."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from pat.integrations.settings import Settings
from tests.unit.config.test_compose import composed

ROOT = Path(__file__).resolve().parents[3]
DATA = ("model.path=m", "data.source=json", "data.train=t.jsonl", "train.num_steps=80")


def block(page: str, holds: str) -> str:
    (found,) = (
        text for text in re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S) if holds in text
    )
    return found


def test_a_recipe_of_your_own_is_the_general_one_but_for_what_it_names(tmp_path: Path) -> None:
    """Would catch: an example that does not compose, or leaves out what the recipe it builds on has."""
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "own.yaml").write_text(block("getting-started.md", "@package"))
    own, general = composed("--config-dir", str(tmp_path), "recipe=own"), composed("recipe=encoder", *DATA)
    assert own.task == general.task
    assert own.pruners["weights"].criterion == general.pruners["weights"].criterion
    assert own.optim.lr == general.optim.lr and own.engine.dtype == general.engine.dtype
    assert own.data.source == "csv" and own.pruners["weights"].budget != general.pruners["weights"].budget


def test_settings_for_another_trainer_are_those_of_the_general_recipe() -> None:
    """Would catch: a recipe that changes, and a page that still shows how it was."""
    given = yaml.safe_load(block("integrations.md", "gradient_samples"))
    shown = Settings.read(given).config().pruners["weights"]
    recipe = composed("recipe=decoder", *DATA).pruners["weights"]
    assert shown.model_dump() == recipe.model_dump()
