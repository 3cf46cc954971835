"""The criterion that CONTRIBUTING.md shows works as it says: one new file, nothing else."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from pat.pruning import criteria, registry


def test_example_criterion_is_found(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (repository / "CONTRIBUTING.md").read_text()
    file = re.search(r"`pat/pruning/criteria/(\w+)\.py`", text)
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert file and code
    (tmp_path / f"{file[1]}.py").write_text(code[1])
    monkeypatch.setattr(criteria, "__path__", [*criteria.__path__, str(tmp_path)])
    registry.classes.cache_clear()
    try:
        criterion = registry.build("criterion", {"name": file[1], "decay": 0.5})
        score, weight, gradient = torch.tensor([1.0, 0.0]), torch.ones(2), torch.tensor([-3.0, 0.5])
        score = criterion.update(score, weight, gradient, 0.0)
        assert criterion.rank(score, weight).tolist() == [2.0, 0.25]
    finally:
        sys.modules.pop(f"pat.pruning.criteria.{file[1]}", None)
        registry.classes.cache_clear()
