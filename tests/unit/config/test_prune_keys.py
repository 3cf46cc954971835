"""What `pat prune` makes of its options and of the model's config: keys of `pat train`, the precision of the result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from pat.commands import prune
from tests import models as small


def called(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, accelerator: str, dtype: str | None, *more: str
) -> tuple[dict[str, str], Sequence[str]]:
    """The keys for the run and the words for the export, on a machine with this accelerator."""
    given: list[Sequence[str]] = []
    config = small.config("llama")
    config.architectures = ["LlamaForCausalLM"]
    config.dtype = dtype
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *_, **__: config)
    monkeypatch.setattr("pat.zero.engine.accelerator", lambda: accelerator)
    for command in ("train", "export"):
        monkeypatch.setattr(f"pat.commands.{command}.main", lambda words: given.append(words) or 0)
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    assert prune.main(["m", "--data", "t.jsonl", "--sparsity", "0.5", "--out", str(tmp_path / "out"), *more]) == 0
    keys, words = given
    return dict(key.split("=", 1) for key in keys), words  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("accelerator", "dtype", "computes", "written"),
    [
        ("cuda", "bfloat16", "bf16", "bf16"),
        ("cuda", "float16", "fp32", "fp16"),
        ("cuda", "float32", "fp32", "fp32"),
        ("cuda", None, "fp32", "fp32"),
        ("cpu", "bfloat16", "fp32", "bf16"),
    ],
)
def test_no_weight_is_rounded_on_its_way(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, accelerator: str, dtype: str | None, computes: str, written: str
) -> None:
    """Would catch: an fp32 or fp16 model that a GPU's bf16 takes bits from, weights that stay included."""
    keys, words = called(monkeypatch, tmp_path, accelerator, dtype)
    assert keys["engine.dtype"] == computes and words[words.index("--dtype") + 1] == written


def test_options_win_over_the_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys, words = called(monkeypatch, tmp_path, "cuda", "float32", "--dtype", "bf16", "engine.dtype=bf16")
    assert keys["engine.dtype"] == "bf16" and words[words.index("--dtype") + 1] == "bf16"


def test_the_config_is_that_of_the_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *_, **given: asked.append(given["revision"]) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prune.main(["m", "model.revision=v1", "--data", "t.jsonl", "--sparsity", "0.5", "--out", str(tmp_path / "out")])
    assert asked == ["v1"]


def test_advice_names_what_can_be_given_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Would catch: `choose another run.dir`, a key that `pat prune` refuses."""

    def refuse(words: Sequence[str]) -> int:
        raise ValueError("go on with the old values, choose another run.dir, or start over with run.resume=never")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *_, **__: small.config("llama"))
    monkeypatch.setattr("pat.commands.train.main", refuse)
    with pytest.raises(ValueError, match="old values, give another --out, or start over"):
        prune.main(
            ["m", "--data", "t.jsonl", "--sparsity", "0.5", "--task", "causal_lm", "--out", str(tmp_path / "out")]
        )
