"""What `pat prune` makes of its options and of the model's config: keys of `pat train`, the precision of the result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from pat.commands import prune
from pat.commands._overrides import one_model
from pat.common.files import write_json
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


@pytest.mark.parametrize(
    ("given", "keys", "raised", "said"),
    [
        ("--sparsity=0.5", [], "choose another run.dir, or start over", "give another --out, or start over"),
        ("--sparsity=2", [], "pruners.weights.budget: budget.sparsity is 2.0, but", "--sparsity is 2.0, but"),
        ("--sparsity=0", [], "unused", "--sparsity 0 removes nothing: give the share"),
        (
            "--keep=ffn=0.999",
            [],
            "pruners.narrow.budget removes nothing: it leaves",
            "--keep removes nothing: it leaves",
        ),
        ("--keep=ffn=0", [], "pruners.narrow.budget: budget.keep.ffn is 0, but", "--keep ffn is 0, but"),
        ("--keep=ffn=900", [], "budget.keep.ffn=900 is more than", "--keep ffn=900 is more than"),
        ("--keep=fnn=1", [], "pruners.narrow.structures has 'fnn'", "--keep has 'fnn'"),
        ("--keep=ffn=1", [], "pruners.narrow.gate: gate.num_samples is 0, but", "--samples is 0, but"),
        ("--sparsity=0.5", [], "pruners.weights.criterion: criterion.reconstruct is -1,", "--reconstruct is -1,"),
        ("--pattern=3:5", [], "n_of_m: the input dimension", "--pattern: the input dimension"),
        ("--sparsity=0.5", [], "there is no criterion called 'x'", "--method: there is no criterion called 'x'"),
        (
            "--sparsity=0.5",
            [],
            "engine.world_size is 0, data.max_length=0, data.eval:",
            "--ranks is 0, --max-length=0,",
        ),
        ("--sparsity=0.5", ["data.text_column=a"], "'a' is not in data.train:", "'a' is not in --data:"),
        ("--sparsity=0.5", [], "data.eval_fraction=2", "data.eval_fraction=2"),
        ("--sparsity=0.5", [], "data.train: no file '/x/data.train.csv'", "--data: no file '/x/data.train.csv'"),
        ("--sparsity=0.5", [], "criterion.reconstruct_lr is -1", "criterion.reconstruct_lr is -1"),
        ("--sparsity=0.5", ["data.max_length=0"], "data.max_length is 0", "data.max_length is 0"),
    ],
)
def test_errors_name_the_options_that_set_the_keys(
    given: str, keys: list[str], raised: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Would catch: `choose another run.dir`, a key that `pat prune` refuses."""

    def refuse(words: Sequence[str]) -> int:
        raise ValueError(raised)

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *_, **__: small.config("llama"))
    monkeypatch.setattr("pat.commands.train.main", refuse)
    with pytest.raises(ValueError) as error:
        prune.main(["m", "--data", "t.jsonl", given, "--task", "causal_lm", "--out", str(tmp_path / "out"), *keys])
    assert str(error.value).startswith(said)


def test_columns_are_those_of_an_exports_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Would catch: an export that is pruned on the file it was trained on, by another column."""
    monkeypatch.chdir(tmp_path)
    data = {"max_length": 24, "text_column": "re view", "label_column": "stars", "text_pair_column": None}
    (tmp_path / "m").mkdir()
    write_json(tmp_path / "m" / "export.json", {"config": {"data": data}})
    of_text, _ = called(monkeypatch, tmp_path, "cpu", None)
    of_labels, _ = called(monkeypatch, tmp_path, "cpu", None, "--task", "classification", "data.text_column=text")
    assert (of_text["data.max_length"], of_text["data.text_column"]) == ("24", "'re view'")
    assert "data.label_column" not in of_text, "a language model has none"
    assert (of_labels["data.text_column"], of_labels["data.label_column"]) == ("text", "'stars'")

    end = ""

    def refuse(words: Sequence[str]) -> int:
        raise ValueError(f"data.text_column='re view' is not in data.train: the columns are text.{end}")

    monkeypatch.setattr("pat.commands.train.main", refuse)
    for keys, end, said in (
        ([], "", " It was called so when m was trained: give data.text_column=NAME."),
        ([], " Give data.text_column=text.", " It was called so when m was trained."),
        (["data.text_column=a"], "", ""),
    ):
        with pytest.raises(ValueError) as error:
            prune.main(["m", "--data", "t.jsonl", "--sparsity", "0.5", "--out", "out", "--task", "causal_lm", *keys])
        assert str(error.value) == f"data.text_column='re view' is not in --data: the columns are text.{end}{said}"


def test_a_misspelt_folder_is_no_name_to_look_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "exports" / "dense").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *_, **__: 1 / 0)
    with pytest.raises(ValueError, match=r"There is no folder MODEL='exports/dens' .* did you mean dense\?"):
        prune.main(["exports/dens", "--data", "t.jsonl", "--sparsity", "0.5", "--out", "out"])


def test_a_folder_with_an_equals_sign_in_its_name_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As exports of sweeps' members and of named checkpoints have it."""
    (tmp_path / "exports" / "sparsity=0.3").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert one_model(["exports/sparsity=0.3", "seed=1"]) == ("exports/sparsity=0.3", ["seed=1"])
