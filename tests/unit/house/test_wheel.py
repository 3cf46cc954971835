"""The wheel holds all that a run needs: it is built, installed by itself and trains, away from the checkout."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

WITH_AN_EXTRA = ("pat/report/terminal.py",)  # modules that only a command imports, once it has looked for the package
KEYS = ("recipe=parity", "engine.world_size=1", "engine.kernels=eager", "logger=none", "train.num_steps=30")


@pytest.mark.slow
def test_the_wheel_trains(repository: Path, tmp_path: Path) -> None:
    """In an environment that has nothing but the wheel and what it declares; pip says whether that is all."""

    def run(*command: str | Path) -> str:
        # TORCH_EXTENSIONS_DIR stays: to compile DeepSpeed's op takes a minute, and every set-up does it.
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        kept["PAT_CACHE"] = str(tmp_path / "cache")
        done = subprocess.run(command, cwd=tmp_path, env=kept, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
        return done.stdout

    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", tmp_path, repository)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    declared = needed(tomllib.loads((repository / "pyproject.toml").read_text())["project"]["dependencies"])
    assert not declared & {"pytest", "mlflow", "peft", "ruff"}, "nearly empty"
    for name in declared:
        give(name, packages)
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    run(*pip, "install", "--no-index", "--quiet", wheel)  # without an index: all that the wheel asks for is here
    run(*pip, "check")
    place = run(python, "-c", "import pat, pat.config.places as p; print(pat.__file__, p.conf_dir())")
    assert place.split() == [str(packages / "pat" / "__init__.py"), str(packages / "pat" / "conf")]
    pat = tmp_path / "venv" / "bin" / "pat"
    run(pat, "train", *KEYS, "run.dir=run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["sparsity"] == pytest.approx(0.8, abs=1e-4)
    run(pat, "export", "run", "--out", "exported")
    assert "8,030,261,248" in run(pat, "plan", "recipe=llama3_8b"), "conf/architectures"


def needed(requirements: Iterable[str]) -> set[str]:
    """The packages that pip would install for these, with all that they need in turn."""
    asked, seen = [Requirement(each) for each in requirements], set[tuple[str, str]]()
    while asked:
        each = asked.pop()
        name = canonicalize_name(each.name)
        for extra in ("", *each.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            wanted = [Requirement(text) for text in importlib.metadata.requires(name) or ()]
            asked += [one for one in wanted if not one.marker or one.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen}


def give(name: str, packages: Path) -> None:
    """A package of this environment for another one: the same files, which take no room."""
    for file in importlib.metadata.files(name) or ():
        source, place = Path(str(file.locate())), packages / file
        if ".." in file.parts or not source.exists():  # scripts
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, place)
        except OSError:  # another disk
            shutil.copy2(source, place)


def test_what_is_imported_comes_with_the_wheel(repository: Path) -> None:
    """Would catch: a package that is here because of another one, or for tests, and nowhere else. What a module imports
    at its top is a dependency, or one of those that a dependency cannot do without; in functions it may be an extra's.
    """
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    extras = {key: value for key, value in project["optional-dependencies"].items() if key != "dev"}
    always = names(project["dependencies"])
    brought = {name for each in always for name in names(importlib.metadata.requires(each) or ())}
    at_choice = {name for each in extras.values() for name in names(each)}
    known, wrong = importlib.metadata.packages_distributions(), set[str]()
    for path in sorted((repository / "pat").rglob("*.py")):
        place = str(path.relative_to(repository))
        for module, at_the_top in imported(ast.parse(path.read_text())):
            needed = {canonicalize_name(each) for each in known.get(module, [module])}
            optional = at_choice if not at_the_top or place in WITH_AN_EXTRA else set[str]()
            if not needed & (always | brought | optional):
                wrong.add(f"{place}: {module}")
    assert not wrong


def names(requirements: Iterable[str]) -> set[str]:
    """The packages that are installed without any extra."""
    parsed = [Requirement(each) for each in requirements]
    return {canonicalize_name(each.name) for each in parsed if not each.marker or each.marker.evaluate({"extra": ""})}


def imported(node: Any, at_the_top: bool = True) -> Iterator[tuple[str, bool]]:
    """The packages of others, and whether whoever imports the module imports them."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        found = [each.name for each in child.names] if isinstance(child, ast.Import) else []
        if isinstance(child, ast.ImportFrom) and not child.level and child.module:
            found = [child.module]
        for module in (each.partition(".")[0] for each in found):
            if module != "pat" and module not in sys.stdlib_module_names:
                yield module, at_the_top
        yield from imported(child, at_the_top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))


def test_extras_have_the_names_that_every_pip_knows(repository: Path) -> None:
    """Catches an extra that older versions of pip skip with a warning: they know only the form that the wheel has."""
    extras = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [name for name in extras if name != canonicalize_name(name)] == []
