"""Every recipe composes, and every recipe takes two steps on a model that is small where it may be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from pat.config import frozen, places
from pat.export.export import export_run
from pat.pruning.weights.matrices import Matrices
from tests.open_recipes import of
from tests.small_recipes import composed, small, start

RECIPES = places.recipes()
Started = tuple[Path, tuple[int | None, str]]  # its folder; the exit code and what it says
# A classifier; the slow set starts every recipe.
QUICK = ["reviews"]


@pytest.mark.parametrize("recipe", [name for name in RECIPES if "8b" in name or "7b" in name])
def test_large_recipes_say_where_they_do_not_promise_the_same_bits(recipe: str) -> None:
    """docs/guarantees.md: without accumulation, eager kernels, an AdamW that cuts of shards do not change."""
    config = composed(f"recipe={recipe}")
    train, ranks_there = config.train, config.engine.world_size
    micro = train.micro_batch_size or train.global_batch_size // ranks_there
    promised = config.optim.implementation != "fused" and config.engine.kernels == "eager"
    promised = promised and train.global_batch_size == micro * ranks_there
    header = (places.conf_dir() / "recipe" / f"{recipe}.yaml").read_text().partition("defaults:")[0]
    assert ("# same bits  not at every ZeRO stage" in header) == (not promised)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_large_model_waits_for_no_more_rows_than_its_steps_need(recipe: str) -> None:
    """Would catch: all rows of a set of the hub are tokenised before the first step. max_train_samples takes them
    before: tests/unit/data/test_encode.py."""
    config = composed(*of(recipe))
    size = re.search(r"\b(\d+)[bB]\b", config.model.path or "")
    assert bool(size) == (config.engine.world_size > 2), "the size is in its name"
    if size and int(size[1]) >= 7:
        assert config.data.max_train_samples is not None


@pytest.mark.parametrize("recipe", RECIPES)
def test_composes_and_comes_back_from_its_file(recipe: str, tmp_path: Path) -> None:
    config = composed(*of(recipe))
    assert config.run.recipe == recipe
    frozen.freeze(config, tmp_path)
    assert frozen.load(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("recipe", RECIPES)
def test_header_says_how_to_run_it(recipe: str, repository: Path) -> None:
    header = (repository / "recipes" / f"{recipe}.yaml").read_text().split("\n\n")[0]
    assert header.startswith("# @package _global_\n")
    assert f"recipe={recipe}" in header
    for word in ("# command ", "# hardware ", "# time ", "# result "):
        assert word in header
    config = composed(*of(recipe))
    assert (config.engine.world_size > 2) == ("NOT YET RUN" in header)


@pytest.fixture(scope="module")
def started(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Started]]:
    """The selected recipes, two at a time: each has one rank."""
    items: list[Any] = request.session.items
    selected = [item.callspec.params["recipe"] for item in items if "started" in item.fixturenames]
    folders = {recipe: tmp_path_factory.mktemp(recipe) for recipe in selected}
    with ThreadPoolExecutor(2) as pool:
        ended = {}
        for recipe, folder in folders.items():
            overrides = [*of(recipe), *small(composed(*of(recipe)), folder)]
            ended[recipe] = pool.submit(start, folder, overrides)
        yield lambda recipe: (folders[recipe], ended[recipe].result())


@pytest.mark.distributed
@pytest.mark.parametrize(
    "recipe", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES]
)
def test_takes_two_steps(recipe: str, started: Callable[[str], Started]) -> None:
    folder, (code, said) = started(recipe)
    assert code == 0, said[-6000:]
    config = composed(*of(recipe))
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["recipe"] == recipe
    assert summary["step"] == 2
    assert summary["zero_stage"] == config.engine.zero_stage
    if not config.pruners:
        return
    assert summary["phase"] == "hard"
    assert summary["sparsity"] == pytest.approx(summary["target_sparsity"], abs=1e-4)
    narrow = [pruner for pruner in config.pruners.values() if pruner.structures]
    if not narrow:
        (pruner,) = config.pruners.values()
        assert summary["target_sparsity"] == pytest.approx(pruner.budget.sparsity, abs=1e-4)
        return
    (kept,) = summary["kept_units"].values()
    groups = narrow[0].budget.keep.get("kv_groups")
    assert set(kept["ffn"]) == {64} and set(kept.get("kv_groups", [groups])) == {groups}
    exported = export_run(folder / "run", folder / "out", verify="logits")
    assert exported["after"]["parameters"] < exported["before"]["parameters"]
    assert exported["mask_sha256"] == summary["mask_sha256"] and exported["stock"]
    assert exported["sparsity"] == summary["sparsity"]  # of the flags, and as the ranks count
    assert exported["prunable_parameters"] == summary["prunable_parameters"]
    assert json.loads((folder / "out" / "config.json").read_text())["intermediate_size"] == 64
    for pruner in config.pruners.values():
        if pruner.params:  # 2:4 in what the gates have left
            weights = load_file(folder / "out" / "model.safetensors")
            names = Matrices({n: tuple(w.shape) for n, w in weights.items()}).take(pruner.params, pruner.exclude)
            assert len(names) == 12  # of two layers
            for name in names:
                assert (weights[name].reshape(-1, 4).count_nonzero(dim=1) == 2).all(), name
