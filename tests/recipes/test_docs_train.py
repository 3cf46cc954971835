"""The training commands of the pages, as they are written, on a model and data that are small."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pat.schema import Config
from tests.small_recipes import composed, small, start
from tests.unit.house.test_docs import WRITTEN, composable

ELSEWHERE = {  # what a command has in it that is not run here
    "distill.teacher": "a teacher: tests/distributed/test_distill.py",
    "distill.cache": "its answers: tests/distributed/test_distill.py",
    "budget.table": "from the table to the gate: tests/distributed/test_latency.py",
}
ONLY_A_RECIPE = ("recipe=", "run.", "engine.world_size=")  # tests/recipes/test_recipes.py


def written() -> list[tuple[str, ...]]:
    """The keys of each command."""
    found = dict.fromkeys(tuple(keys) for words in WRITTEN if words[0] == "train" and (keys := composable(words)))
    return [
        keys
        for keys in found
        if not any(part in key for part in ELSEWHERE for key in keys)
        and not all(key.startswith(ONLY_A_RECIPE) for key in keys)
    ]


@pytest.mark.distributed
@pytest.mark.slow
def test_every_training_command_of_the_pages_trains(tmp_path: Path) -> None:
    """Would catch: keys that compose, and that no model, data or schedule can be trained with."""

    def train(command: tuple[tuple[str, ...], Config, Path]) -> str | None:
        keys, config, folder = command
        folder.mkdir()
        code, said = start(folder, [*keys, *small(config, folder)])
        if code != 0:
            return f"pat train {' '.join(keys)}: {code}\n{said[-1500:]}"
        summary = json.loads((folder / "run" / "summary.json").read_text())
        assert summary["phase"] == ("hard" if config.pruners else "dense"), keys
        return None

    commands = [(keys, composed(*keys), tmp_path / str(i)) for i, keys in enumerate(written())]
    assert len(commands) > 15
    with ThreadPoolExecutor(2) as pool:
        wrong = [each for each in pool.map(train, commands) if each]
    assert not wrong, "\n\n".join(wrong)
