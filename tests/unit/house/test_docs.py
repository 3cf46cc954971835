"""What people read: its commands are ones that pat takes, links lead somewhere, and figures are those measured."""

from __future__ import annotations

import importlib.util
import re
import shlex
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from pat import commands
from pat.config import compose, places

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINES = 150  # of the README, at most
PLACEHOLDERS = {"NAME": "sotu_dense"}  # recipe=NAME stands for any
FILLED_IN = {"train.num_steps": "200", "data.source": "json", "data.train": "f.jsonl", "model.path": "/m"}  # for ...
BESIDE = ("cluster.", "engine.hostfile=")  # keys that are no part of a run's config, or name a file that is read


def script(name: str) -> Any:
    """A file of docs/build, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "build" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code_in(text: str) -> Iterator[str]:
    """Every command of the code, without what explains it at the right: a line has several between && or ;."""
    blocks = re.findall(r"(?:^    [^\n]*\n|^\n)+|```.*?```", text, re.MULTILINE | re.DOTALL)
    for line in re.sub(r"\\\n\s*", " ", "".join(blocks)).splitlines():
        yield from re.split(r"\s*(?:&&|;|\|)\s+", re.split(r"\s{3,}", line.strip())[0])


def lines_in(text: str) -> Iterator[str]:
    """What follows `pat` in each that calls it."""
    for code in code_in(text):
        called = re.match(r"(?:srun (?:\S+ )*?)?pat (.*)", code)
        if called:
            yield called[1]


def commands_in(text: str) -> Iterator[list[str]]:
    """The words of these lines, without comments."""
    return (shlex.split(line, comments=True) for line in lines_in(text))


def called_in(workflow: Path) -> list[list[str]]:
    """The words of these commands in the steps of a GitHub workflow."""
    jobs = yaml.safe_load(workflow.read_text())["jobs"].values()
    runs = (step["run"] for job in jobs for step in job["steps"] if "run" in step)
    return [words for run in runs for words in commands_in(textwrap.indent(f"{run}\n", "    "))]


WORKFLOWS = sorted((ROOT / "docs" / "examples").glob("*.yml"))
WRITTEN = [words for page in PAGES for words in commands_in(page.read_text())]
CALLED = [words for workflow in WORKFLOWS for words in called_in(workflow)]
COMMANDS = [pytest.param(words, id=" ".join(words)[:60]) for words in (*WRITTEN, *CALLED)]


@cache
def helped(command: str) -> str:
    return script("hooks")._help(command)


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_and_options_exist(words: list[str]) -> None:
    command, *rest = words
    assert command in (*commands.names(), "COMMAND")
    for word in rest if command != "COMMAND" else ():
        if word.startswith("-"):
            assert re.search(rf"(?<![\w-]){re.escape(word)}\b", helped(command)), word


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_scripts_and_their_options_exist(page: Path) -> None:
    for code in code_in(page.read_text()):
        called = re.match(r"python (?:-m (tests[\w.]+)|((?:tests|docs|launch)/\S+\.py))(.*)", code)
        if called:
            file = ROOT / (called[2] or f"{called[1].replace('.', '/')}.py")
            assert file.is_file(), code
            for option in re.findall(r"(?<= )--[\w-]+", called[3]):
                assert f'"{option}"' in file.read_text(), code


def test_every_workflow_calls_pat() -> None:
    assert WORKFLOWS and all(called_in(workflow) for workflow in WORKFLOWS)


def composable(words: list[str]) -> list[str]:
    """The keys of a command whose recipe comes with pat, with what its reader is to fill in; [] of others."""
    command, *rest = words
    keys = [word for word in rest if re.match(r"[\w./]+=", word) and not word.startswith(BESIDE)]
    recipe = next((key.removeprefix("recipe=") for key in keys if key.startswith("recipe=")), None)
    if command not in ("train", "data", "plan") or recipe not in (*places.recipes(), *PLACEHOLDERS):
        return []
    if any(word.startswith("budget=") for word in rest):  # a search: test_docs_dry.py
        return []
    given = [f"recipe={PLACEHOLDERS.get(recipe, recipe)}" if key.startswith("recipe=") else key for key in keys]
    if "..." in rest and recipe not in PLACEHOLDERS:
        given += [
            f"{key}={value}" for key, value in FILLED_IN.items() if not any(k.startswith(f"{key}=") for k in given)
        ]
    return given


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys", [pytest.param(keys, id=" ".join(keys)[:60]) for words in WRITTEN if (keys := composable(words))]
)
def test_keys_and_recipes_compose(keys: list[str]) -> None:
    """As the start of the command would, but for the files that it names."""
    assert compose.compose(keys, lambda config: 0) == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


MADE = {"results/gpu.json", "results/mutants.jsonl"}  # by running something
EXAMPLES = {
    "pat/pruning/criteria/gradient.py",
    "pat/pruning/gates/sensitivity.py",
    "pat/pruning/scopes/layer.py",
}  # of CONTRIBUTING, of files to write
FOLDERS = "pat|tests|docs|launch|conf|recipes|results|docker"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_tests_that_are_named_exist(page: Path) -> None:
    """A promise names its test: one that was renamed or removed proves nothing."""
    text = page.read_text()
    for path in set(re.findall(rf"(?<![\w/.-])((?:{FOLDERS})/[\w/.*-]*\w)", text)) - MADE - EXAMPLES:
        assert list(ROOT.glob(path)) or list(ROOT.glob(f"{path}*")), path
    for name in re.findall(r"`(\w+\.py)`", text):
        assert any(ROOT.glob(f"{folder}/**/{name}") for folder in ("pat", "tests")), name


def test_every_page_is_in_the_menu() -> None:
    """A link to a page outside of docs/ is one that the site does not have; mkdocs itself refuses those."""
    menu = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES[1:]:
        assert f": {page.relative_to(ROOT / 'docs')}\n" in menu, page


def test_the_readme_is_short_and_its_figures_are_those_of_the_results_files() -> None:
    figures, readme = script("figures"), (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= LINES
    assert figures.written(readme) == readme, "run python docs/build/figures.py"
    demo, step = (
        figures.result("demo"),
        {phase: {"step_ratio": 9.0, "step_ratio_paired": 8.0} for phase in ("soft", "hard")},
    )
    demo["pruned"] |= {"accuracy": 0.125, "calibration_seconds": 3600}
    assert "12.5%" in (page := figures.with_demo(readme, demo)) and " 62 minutes of training and cuts" in page
    assert "9.00 (masks are final)" in figures.with_step(readme, step)
    assert "8.00 and 8.00 in paired steps |" in figures.with_step(readme, step)
    assert "has 12.5 % ([results]" in figures.with_prune(readme, {"accuracy": 0.125})
    left = {"nonzero_parameters": 7e6, "parameters": 9e6}
    sizes = figures.with_sizes(readme, dict.fromkeys(("addresses-80-50-alps-0", "reviews-120-80-alps-0"), left))
    assert "leaves 7 M of the Llama's 9 M" in sizes and "7 M of MiniLM's 9 M" in sizes
    assert "of 64 tokens 2.50 times as fast" in figures.with_speed(readme, {"tokens": 64, "speedup": 2.5})
    assert figures.into(readme, {}) != readme, "each figure has its place in the page"


def test_a_figure_that_is_missing_is_said_and_seeds_are_averaged() -> None:
    figures = script("figures")
    assert figures.NOT_MEASURED in figures.table({})
    rows = {f"reviews-120-80-alps-{seed}": {"metric": "accuracy", "value": v} for seed, v in enumerate((0.7, 0.8))}
    rows |= {"reviews-120-80-llmcompressor-wanda-0": {"metric": "accuracy", "value": 0.6}}
    rows |= {"reviews-120-80-llmcompressor-sparsegpt-0": {"metric": "accuracy", "value": 0.65}}
    assert "**75.0 % (2 seeds)** | 65.0 %, llmcompressor's SparseGPT" in figures.table(rows)
