"""YAML that people write: a key that is there twice is a mistake, and not the last one's value."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pat.common.yaml_files import read_yaml


@pytest.mark.parametrize("content", ["a: 1\nb: 2\na: 3\n", "x:\n  a: {min: 1}\n  a: {max: 2}\n", "- {a: 1, 'a': 2}\n"])
def test_a_key_twice_is_a_mistake(content: str, tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"f.yaml is not YAML: 'a' is there twice .*line \d"):
        read_yaml(tmp_path / "f.yaml")


def test_everything_else_is_read(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("base: &b {a: 1}\nmore: {<<: *b, a: 2}\n1: x\n'1': y\n")
    assert read_yaml(file) == {"base": {"a": 1}, "more": {"a": 2}, 1: "x", "1": "y"}
    file.write_text("base: &b {x: 1}\ndeep: {a: &a {<<: *b, x: 2}}\nb: {<<: *a}\n")  # of an anchor that is deeper
    assert read_yaml(file) == yaml.safe_load(file.read_text()), "a merge is no key that is there twice"
    file.write_text("")
    assert read_yaml(file) is None
    file.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="is not UTF-8"):
        read_yaml(file)
