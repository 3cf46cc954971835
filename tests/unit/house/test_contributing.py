"""The methods that CONTRIBUTING.md shows work as it says: one new file, nothing else."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pat.pruning import criteria, gates, registry, scopes
from pat.pruning.granularity.weight import Weight
from pat.pruning.weights.ranking import check_scope
from pat.pruning.weights.selection import select_units
from tests.small_recipes import composed
from tests.thread_ranks import assert_same, oracle, select_on


@contextmanager
def added(package: Any, folder: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The file that the text shows for a package, where the package finds it; its name."""
    text = (repository / "CONTRIBUTING.md").read_text()
    place = package.__name__.replace(".", "/")
    shown = re.search(rf"`{place}/(\w+)\.py`.*?```python\n(.*?)```", text, re.DOTALL)
    assert shown
    (folder / f"{shown[1]}.py").write_text(shown[2])
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    caches = registry.classes, scopes.classes
    for cache in caches:
        cache.cache_clear()
    try:
        yield shown[1]
    finally:
        sys.modules.pop(f"{package.__name__}.{shown[1]}", None)
        for cache in caches:
            cache.cache_clear()


def test_example_criterion_is_found(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with added(criteria, tmp_path, repository, monkeypatch) as name:
        criterion = registry.build("criterion", {"name": name, "decay": 0.5})
        score, weight, gradient = torch.tensor([1.0, 0.0]), torch.ones(2), torch.tensor([-3.0, 0.5])
        score = criterion.update(score, weight, gradient, 0.0)
        assert criterion.rank(score, weight).tolist() == [2.0, 0.25]


def test_example_gate_is_found(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with added(gates, tmp_path, repository, monkeypatch) as name:
        method = registry.build("gate", {"name": name, "fade": 3})
        assert method.update(torch.tensor([1.0, 0.0]), torch.tensor([-2.0, 0.5])).tolist() == [3.0, 0.5]


def test_example_scope_is_found(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer meets the target, to the unit, on any number of ranks; what is calibrated refuses it."""
    size = {"layers.0.q.weight": 60, "layers.0.up.weight": 41, "layers.1.q.weight": 60, "head.weight": 9}
    scores = {
        name: torch.randn(n, generator=torch.Generator().manual_seed(i)) for i, (name, n) in enumerate(size.items())
    }
    scores["layers.0.up.weight"] += 3.0  # q loses nearly all that goes
    expected = {
        name: flags
        for group in (["layers.0.q.weight", "layers.0.up.weight"], ["layers.1.q.weight"], ["head.weight"])
        for name, flags in oracle({n: scores[n] for n in group}, sum(size[n] for n in group) // 2).items()
    }
    with added(scopes, tmp_path, repository, monkeypatch) as name:
        scope = scopes.build(name)
        for ranks in (1, 2, 3):
            assert_same(select_on(ranks, scores, lambda r, c: select_units(r, 0.5, scope, c)), expected)
        assert scope.pruned(size, 0.5) == {"layers.0": 51, "layers.1": 30, "head.weight": 5}
        composed("recipe=parity", f"pruners.weights.scope={name}")
        alps = registry.build("criterion", {"name": "alps", "gradient_samples": 16})
        with pytest.raises(ValueError, match="as scope=layer would: .*scope: global; or scope: matrix, or row"):
            check_scope("pruners.weights", scope, Weight(), alps, ())


def test_only_the_files_that_it_names_import_deepspeed(repository: Path) -> None:
    (named,) = re.findall(
        r"Only ((?:`[\w/.]+`[,\sand]*)+) import deepspeed", (repository / "CONTRIBUTING.md").read_text()
    )
    found = {
        str(path.relative_to(repository / "pat"))
        for path in (repository / "pat").rglob("*.py")
        if re.search(r"^\s*(?:import|from) deepspeed\b", path.read_text(), re.MULTILINE)
    }
    assert found == set(re.findall(r"`(.*?)`", named))


def test_hooks_before_a_commit_are_the_checks_of_ci(repository: Path) -> None:
    """Fails where one of them knows a check that the other has not; the tests are CI's alone."""
    hooks = yaml.safe_load((repository / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    pattern = r"^check(?:_beside)? (?!tests/)(.+?)(?: \.| --pythonpath .*)?$"
    checks = re.findall(pattern, (repository / ".ci/run").read_text(), re.MULTILINE)
    assert [hook["entry"] for hook in hooks] == checks
    jobs = yaml.safe_load((repository / ".github/workflows/ci.yml").read_text())["jobs"]
    called = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert 'sudo -E env "PATH=$PATH" .ci/run' in called, "all of them, as root"
