"""`pat evaluate`: metrics of folders against what transformers computes, and the mistakes one can make."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pat import cli, compose, data, tasks
from pat.models import byte_tokenizer
from tests.unit import small_models

PARITY = ["recipe=parity", "data.max_eval_samples=6", "data.max_length=32"]


@pytest.fixture
def folder(tmp_path):
    """A function that writes a causal LM of a seed."""

    def write(seed):
        torch.manual_seed(seed)
        small = LlamaConfig(
            vocab_size=320, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, pad_token_id=256,
        )  # fmt: skip
        path = tmp_path / f"model-{seed}"
        LlamaForCausalLM(small).save_pretrained(path)
        byte_tokenizer().save_pretrained(path)
        return path

    return write


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", *map(str, arguments)])
    return stop.value.code


def test_the_figures_are_those_of_transformers(folder, tmp_path, capsys):
    """Fails if samples are left out or counted twice, or if a model is shown with another one's figures."""
    folders = [folder(0), folder(1)]
    assert run(*folders, *PARITY, "--json", tmp_path / "figures.json", "--device", "cpu") == 0
    found = json.loads((tmp_path / "figures.json").read_text())["models"]
    configs = []
    compose.compose(PARITY, lambda config: configs.append(config) or 0)
    task = tasks.build(configs[0].task)
    samples = data.prepare(configs[0].data, byte_tokenizer(), task, configs[0].seed).eval
    blocks = torch.tensor(samples["input_ids"])  # of one length each, so the mean of means is the mean
    for path, item in zip(folders, found, strict=True):
        model = LlamaForCausalLM.from_pretrained(path)
        with torch.no_grad():
            expected = float(model(blocks, labels=blocks).loss)
        assert item["metrics"]["loss"] == pytest.approx(expected, rel=1e-5)
        assert item["folder"] == str(path) and item["parameters"] == sum(p.numel() for p in model.parameters())
    assert found[0]["metrics"] != found[1]["metrics"]
    difference = found[1]["metrics"]["loss"] - found[0]["metrics"]["loss"]
    assert f"({difference:+.4g})" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (PARITY, "no folder to evaluate"),
        (["nowhere", *PARITY], "there is no folder nowhere"),
    ],
)
def test_mistakes(arguments, sentence, capsys):
    assert run(*arguments) == 2
    assert sentence in capsys.readouterr().err


def test_other_labels_are_refused(tmp_path, capsys):
    """Fails if an answer is compared with the label of the same number but another meaning."""
    path, rows = tmp_path / "model", tmp_path / "rows.jsonl"
    model = small_models.model("bert", auto=small_models.transformers.AutoModelForSequenceClassification)
    model.config.id2label = {0: "good", 1: "bad"}
    model.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    rows.write_text(
        "".join(json.dumps({"text": f"text {i}", "label": ["bad", "good"][i % 2]}) + "\n" for i in range(8))
    )
    local = ["data.source=json", f"data.train={rows}", f"data.eval={rows}", "data.max_length=16"]
    assert run(path, "recipe=reviews_dense", *local) == 2
    assert "has the labels good, bad, the data bad, good" in capsys.readouterr().err
