"""By which hash a model's weights are known."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pat.models import weight_files
from pat.models.weight_files import identity, weights_sha256


def test_an_identity_is_of_the_weights_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a config or a tokenizer changes it, a weight's bit or name does not, or a hub name is not looked up."""
    (tmp_path / "b.safetensors").write_bytes(b"two")
    (tmp_path / "a.safetensors").write_bytes(b"one")
    (tmp_path / "x.bin").write_bytes(b"older copy")
    lines = sorted(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for data, name in
                   ((b"one", "a.safetensors"), (b"two", "b.safetensors")))  # fmt: skip
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert weights_sha256(tmp_path) == expected
    (tmp_path / "config.json").write_text("{}")
    assert identity(str(tmp_path), None) == {"path": str(tmp_path), "sha256": expected}
    cached = {("org/model", "main"): str(tmp_path / "config.json")}
    monkeypatch.setattr(weight_files, "try_to_load_from_cache", lambda path, _, revision: cached.get((path, revision)))
    assert identity("org/model", "main") == {"path": "org/model", "sha256": expected}
    assert identity("org/model", None) is None and identity(None, None) is None
    (tmp_path / "a.safetensors").write_bytes(b"onf")
    assert weights_sha256(tmp_path) != expected
