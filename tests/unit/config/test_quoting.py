"""Values on a command line that Hydra reads back unchanged."""

from __future__ import annotations

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from pat.config.quoting import quoted, typed


@pytest.mark.parametrize(
    "text", ["plain", "my runs (1)", "it's", "a,b", "x=1", "{a: 1}", "[1]", "${x}", r"C:\x", "ends\\", r"\'", "", "ü"]
)
def test_hydra_reads_it_back(text: str) -> None:
    assert OverridesParser.create().parse_override(f"run.dir={quoted(text)}").value() == text
    (word,) = shlex.split(typed("run.dir", text))
    assert str(OverridesParser.create().parse_override(word).value()) == text
