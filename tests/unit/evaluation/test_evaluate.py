"""`pat evaluate`: metrics of folders against what transformers computes, and the mistakes one can make."""

from __future__ import annotations

import json
import re

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from pat import cli
from pat.config import compose
from pat.data import prepare
from pat.evaluation import folders
from pat.export import origins
from pat.export.export import export_run
from pat.models.tokenizers import byte_tokenizer
from pat.schema import ANOTHER_TRAINERS, DataConfig
from pat.tasks import base
from tests import models
from tests.fake_run import write_run

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
    task = base.build(configs[0].task)
    samples = prepare.prepare(configs[0].data, byte_tokenizer(), task, configs[0].seed).eval
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


def test_work_that_takes_long_is_said_where_there_is_no_terminal(folder, capsys, monkeypatch):
    assert run(folder(0), *PARITY) == 0 and not capsys.readouterr().err
    monkeypatch.setattr("pat.commands._models.SILENT_S", 0.0)
    assert run(folder(0), *PARITY) == 0
    assert capsys.readouterr().err == f"pat: evaluating {folder(0)}\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (PARITY, "no folder to evaluate"),
        (["nowhere", *PARITY], "there is no folder nowhere"),
        ([".", *PARITY], "holds no config.json"),
        ([".", *PARITY, "data=json", "data.train=no.jsonl"], "no file matches 'no.jsonl'"),  # before a model is loaded
        (["."], "holds no config.json: give a run directory"),
        ([".", "data=json"], "data is a group"),
        ([".", "optim.lr=1"], "optim.lr would be ignored"),
        ([".", "--config-dir", "x"], "--config-dir x would be ignored"),
        ([".", *PARITY, "--json", "nowhere/figures.json"], "there is no folder nowhere"),
        ([".", *PARITY, "--device", "abacus"], "torch cannot compute there"),
        ([".", *PARITY, "--device", "meta"], "torch cannot compute there"),
    ],
)
def test_mistakes(arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    assert sentence in capsys.readouterr().err


def test_other_labels_are_refused(tmp_path, capsys):
    """Fails if an answer is compared with the label of the same number but another meaning."""
    path, rows = tmp_path / "model", tmp_path / "rows.jsonl"
    model = models.model("bert", auto=models.transformers.AutoModelForSequenceClassification)
    model.config.id2label = {0: "good", 1: "bad"}
    model.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    rows.write_text(
        "".join(json.dumps({"text": f"text {i}", "label": ["bad", "good"][i % 2]}) + "\n" for i in range(8))
    )
    local = ["data.source=json", f"data.train={rows}", f"data.eval={rows}", "data.max_length=16"]
    assert run(path, "recipe=reviews_dense", *local) == 2
    assert "has the labels good, bad, the data bad, good" in capsys.readouterr().err


@pytest.mark.parametrize("pad_token_id", [None, 3])
def test_a_decoder_that_classifies_is_read_at_its_last_token(pad_token_id, tmp_path):
    """Fails if shorter rows of a batch are read at padding, where the config names another token than the one that
    pads, or none."""
    path, rows = tmp_path / "model", tmp_path / "rows.jsonl"
    auto, tokenizer = models.transformers.AutoModelForSequenceClassification, byte_tokenizer()
    model = models.model("llama", auto=auto, vocab_size=320, pad_token_id=pad_token_id)
    model.config.id2label, model.config.label2id = {0: "bad", 1: "good"}, {"bad": 0, "good": 1}
    texts = [f"{'x' * (7 * i % 11)} {i}" for i in range(24)]
    with torch.no_grad():
        answers = [int(model(torch.tensor([tokenizer(text)["input_ids"]])).logits.argmax()) for text in texts]
    assert 4 < sum(answers) < 20
    labels = [["bad", "good"][answer] for answer in answers]
    model.save_pretrained(path)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(path)
    rows.write_text("".join(json.dumps({"text": t, "label": a}) + "\n" for t, a in zip(texts, labels, strict=True)))
    local = ["data.source=json", f"data.train={rows}", f"data.eval={rows}", "data.max_length=16"]
    (one,) = figures(tmp_path, path, "recipe=reviews_dense", *local)["models"]
    assert one["metrics"]["accuracy"] == 1.0


def test_a_classifier_of_several_labels_is_refused(tmp_path, capsys):
    """Fails if the least improbable label of a text that has none counts as its answer."""
    path, mix = tmp_path / "model", tmp_path / "mix.jsonl"
    model = models.model("bert", auto=models.transformers.AutoModelForSequenceClassification, vocab_size=320)
    model.config.problem_type = "multi_label_classification"
    model.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    mix.write_text(json.dumps({"prompt": "a", "checks": [{"name": "label", "label": "LABEL_0"}]}) + "\n")
    capsys.readouterr()  # the bar of saving
    for given in (
        ["--mix", mix],
        ["recipe=reviews_dense", "data.source=json", f"data.train={mix}", f"data.eval={mix}"],
    ):
        assert run(path, *given) == 2
        said = capsys.readouterr().err
        assert "pat reads one label a text" in said and said.count("\n") == 1
    model.config.problem_type = "single_label_classification"
    model.save_pretrained(path)
    assert run(path, "--mix", mix, "--device", "cpu") == 0


@pytest.fixture
def made(tmp_path):
    """A function that writes a run (of a width and a seed of its own data) and exports it."""

    def write(name, max_length, seed=0, **model):
        torch.manual_seed(3)
        small = LlamaConfig(
            vocab_size=320, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, pad_token_id=256, **model,
        )  # fmt: skip
        path = tmp_path / name
        write_run(path, LlamaForCausalLM(small), byte_tokenizer(), "causal_lm", dtype="fp32")
        config = yaml.safe_load((path / "config.yaml").read_text())
        config["data"] |= {"max_length": max_length, "max_eval_samples": 5}
        config["seed"] = seed
        (path / "config.yaml").write_text(yaml.safe_dump(config))
        export_run(path, tmp_path / f"{name}-export", verify="weights")
        return path, tmp_path / f"{name}-export"

    return write


def figures(tmp_path, *arguments):
    file = tmp_path / "figures.json"
    assert run(*arguments, "--json", file, "--device", "cpu") == 0
    return json.loads(file.read_text())


def expected_loss(export, max_length, seed=0):
    """By transformers alone, on the samples of the run's own data."""
    own = DataConfig(source="generated", max_length=max_length, max_eval_samples=5)
    samples = prepare.prepare(own, byte_tokenizer(), base.build({"name": "causal_lm"}), seed).eval
    blocks = torch.tensor(samples["input_ids"])
    with torch.no_grad():
        return float(LlamaForCausalLM.from_pretrained(export)(blocks, labels=blocks).loss)


def test_a_run_and_an_export_know_their_data(made, tmp_path, capsys):
    """Fails if another length, another seed's text, or another checkpoint than the best is measured."""
    directory, export = made("first", 16, seed=7)
    found = figures(tmp_path, directory, export)
    expected = expected_loss(export, 16, seed=7)
    assert found["same_data"] and [item["folder"] for item in found["models"]] == [str(directory), str(export)]
    for item in found["models"]:
        assert item["metrics"]["loss"] == pytest.approx(expected, rel=1e-5)
        assert item["max_length"] == 16 and item["step"] == 10
    assert "not compare" not in capsys.readouterr().err


def test_the_columns(made, tmp_path, capsys):
    """Fails if zeros are counted as parameters, masks as weights, or sparsity over what was never prunable."""
    directory, export = made("first", 16)
    (item, again) = figures(tmp_path, export, directory)["models"]
    said = json.loads((export / "export.json").read_text())
    assert item["sparsity"] == said["sparsity"] == again["sparsity"] > 0.6
    assert item["parameters"] == said["after"]["parameters"]
    assert item["nonzero_parameters"] == said["after"]["nonzero_parameters"] < item["parameters"]
    assert item["bytes"] == (export / "model.safetensors").stat().st_size == again["bytes"]
    assert folders.weights_sha256(export) == said["weights_sha256"], "of an export in fp32"
    assert item["tokens_per_s"] > 0
    table = capsys.readouterr().out
    for words in ("sparsity", "not zero", "on disk", "tokens/s"):
        assert words in " ".join(table.split()), table


def test_the_command_line_overrides_what_a_run_says(made, tmp_path):
    directory, export = made("first", 16)
    (by_key,) = figures(tmp_path, directory, "data.max_length=8")["models"]
    assert by_key["max_length"] == 8
    assert by_key["metrics"]["loss"] == pytest.approx(expected_loss(export, 8), rel=1e-5)
    found = figures(tmp_path, directory, *PARITY)
    assert found["recipe"] == "parity" and found["models"][0]["max_length"] == 32
    assert run(directory, "data.max_length=0") == 2


@pytest.fixture
def of_rows(made, tmp_path):
    """A function that writes rows and an export whose model was made with them."""

    def write(**data):
        _, export = made("of-rows", 16)
        rows = tmp_path / "rows.jsonl"
        rows.write_text("".join(json.dumps({"text": f"the text of row {i}"}) + "\n" for i in range(40)))
        said = json.loads((export / "export.json").read_text())
        said["config"]["data"] |= {"source": "json", "train": str(rows), "eval_fraction": 0.1, **data}
        (export / "export.json").write_text(json.dumps(said))
        return export, rows

    return write


ALL = "all 40 evaluation rows have texts of the training data: the metrics count what was memorised"
IF_TRAINED = (
    "all 40 evaluation rows have texts of data.train: if the model was trained on these, the metrics count what"
)


@pytest.mark.parametrize(
    ("command", "own", "key", "said"),
    [
        ("evaluate", {}, "eval=ROWS", ALL),
        ("compare", {}, "eval=ROWS", ALL),
        ("gate", {}, "eval=ROWS", ALL),
        ("evaluate", {"train": "other.jsonl"}, "train=ROWS data.eval=ROWS", IF_TRAINED),
        ("evaluate", {}, "eval_fraction=0.5", "it was trained on evaluation rows, for data.eval_fraction=0.5 is above"),
        ("evaluate", {"eval": "other.jsonl"}, "eval=null", "it was trained on all rows of data.train, and data.eval="),
        ("evaluate", {}, "eval_fraction=0.05", None),
        ("evaluate", {"of_another_version": 1}, "source=generated recipe=parity", None),
    ],
)
def test_rows_that_a_model_was_trained_on_are_said(command, own, key, said, of_rows, capsys):
    """Fails if what a model has memorised counts as its quality without a word."""
    export, rows = of_rows(**own)
    more = {"evaluate": [], "compare": [export], "gate": ["envelope.perplexity.max=1e9"]}[command]
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        keys = f"data.{key.replace('ROWS', str(rows))}".split()
        cli.main([command, *map(str, [export, *more]), *keys, "--device", "cpu"])
    warned = capsys.readouterr().err
    assert stop.value.code == 0, warned
    assert f"pat: {export}: " in warned and said in warned if said else "memorised" not in warned


def test_another_file_of_the_same_name_is_said(of_rows, tmp_path, monkeypatch, capsys):
    """Fails if an export of one project is measured on the rows of another one without a word."""
    export, rows = of_rows(train="rows.jsonl")
    said, (own,) = json.loads((export / "export.json").read_text()), origins.configs([export], ())
    monkeypatch.chdir(tmp_path)
    made_with = prepare.prepare(own.data, byte_tokenizer(), base.build(own.task), own.seed)
    said["lineage"]["data"] = [list(each) for each in made_with.origin]
    (export / "export.json").write_text(json.dumps(said))
    sentence = f"pat: {export}: these samples are not those of the data that it was made with: a file has changed since"
    for content, key, other in (
        (None, "data.max_eval_samples=1", False),
        ("other", "data.max_eval_samples=1", True),
        ("other", "data.max_length=8", False),
    ):
        if content:
            rows.write_text(rows.read_text().replace("the text", content))
        capsys.readouterr()
        assert run(export, key, "--device", "cpu") == 0
        assert (sentence in capsys.readouterr().err) == other


def test_models_with_data_of_their_own_are_not_compared(made, folder, tmp_path, capsys):
    """Fails if a difference between two models is shown that were asked different things."""
    (_, first), (_, second), plain = made("first", 16), made("second", 24), folder(0)
    found = figures(tmp_path, first, second, plain)
    said = capsys.readouterr()
    assert not found["same_data"] and "data.max_length is 16 and 24" in said.err and "(+" not in said.out
    assert [item["max_length"] for item in found["models"]] == [16, 24, 16], "a folder that does not know: the first's"
    assert found["models"][2]["sparsity"] is None
    found = figures(tmp_path, first, second, "data.max_length=8")
    assert found["same_data"] and "(+" in capsys.readouterr().out


def test_losses_of_other_tokens_are_not_compared(tmp_path, capsys):
    """Fails if a model is shown as worse because its tokenizer cuts texts into fewer tokens."""
    found = figures(tmp_path, *models.write_uniform(tmp_path), *PARITY)
    said = capsys.readouterr()
    assert not found["same_data"] and "different tokenizers" in said.err and "(+" not in said.out
    (first, second) = (item["metrics"]["loss"] for item in found["models"])
    assert first != pytest.approx(second, rel=0.01)


def test_generated_text_is_that_of_its_seed(made, tmp_path, capsys):
    """Fails if models are compared that were asked texts of two seeds, or one of files is kept from it by a seed."""
    (first, _), (second, _) = made("first", 16, seed=0), made("second", 16, seed=1)
    found = figures(tmp_path, first, second)
    said = capsys.readouterr()
    assert not found["same_data"] and "seed is 0 and 1" in said.err and "(+" not in said.out
    assert figures(tmp_path, first, second, "seed=1")["same_data"]
    own = origins.configs((first, second), ())
    for changes, differing in (
        ({"data__source": "json"}, None),
        ({"data__source": "json", "task__class_weights": "balanced", "task__loss_chunk_tokens": 512}, None),
        ({"data__source": "mixture", "data__sources": {"a": {"source": "json"}}}, None),
        ({"data__source": "mixture", "data__sources": {"a": {"source": "generated"}}}, "seed is 0 and 1"),
    ):
        assert origins.differing_data([config.changed(**changes) for config in own]) == differing
    first = own[0].changed(data__source="json")
    others = [first.changed(**{key: value}) for key, value in (("data__num_proc", 3), ("task__loss_chunk_tokens", 512))]
    assert origins.differing_data([first, *others]) is None
    assert origins.differing_data([first, first.changed(data__max_length=3)])


@pytest.mark.parametrize("order", [(0.1, 0.05), (0.05, 0.1)])
def test_two_models_are_evaluated_on_rows_that_neither_was_trained_on(made, order):
    """What is held out of a twentieth is held out of a tenth, too."""
    folder, _ = made("first", 16)
    (own,) = origins.configs([folder], ())
    both = iter(own.changed(data__eval_fraction=each) for each in order)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="as in data.eval_fraction=0.05,"):
        patch.setattr(origins, "config_of", lambda path: next(both))
        origins.one_config([folder, folder], ())


def test_the_key_that_an_error_names_can_be_typed(made):
    """Fails if null is written as Python does, which names a file, or a key is not read as by `pat train`."""
    folder, _ = made("first", 16)
    (own,) = (config.changed(data__source="json") for config in origins.configs([folder], ()))
    for values in ((None, "test.jsonl"), (["a b.jsonl", "c.jsonl"], "d.jsonl"), (None, "it's, here.jsonl")):
        configs = [own.changed(data__eval=value) for value in values]
        said = str(origins.differing_data(configs))
        _, first, second = re.split(r"data\.eval is (.*) and ", said)
        for typed, value in ((first, values[0]), (second, values[1])):
            assert origins._with(own, [f"data.eval={typed}"]).data.eval == value
    theirs, mine = ({name: {"source": "text", "train": f"{name}.txt"}} for name in ("theirs", "mine"))
    mixed = own.changed(data__source="mixture", data__sources=theirs)
    replaced = origins._with(mixed, ["data.sources={mine: {source: text, train: mine.txt}}"])
    assert replaced.data.sources == mine, "not a mixture of both"
    assert origins._with(own, ["data.text_column=yes"]).data.text_column == "yes"
    for wrong in ("data.delimiter=,", "data.eval=[a.csv", "seed=1,2"):
        with pytest.raises(ValueError) as error:
            origins._with(own, [wrong])
        assert "\n" not in str(error.value)


def test_an_export_of_another_trainer_does_not_say_its_data(made, tmp_path):
    """Fails if the placeholders of `attach` are taken for a data set of the hub."""
    folder, _ = made("first", 16)
    own = origins.config_of(folder)
    assert own is not None
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "config.json").write_text("{}")
    content = own.changed(data={"source": ANOTHER_TRAINERS, "max_length": 1}).plain()
    (theirs / "export.json").write_text(json.dumps({"config": content}))
    assert origins.config_of(theirs) is None and origins.configs([folder, theirs], ()) == [own, own]
    with pytest.raises(ValueError, match="does not say which data it was made for"):
        origins.configs([theirs], ())


def test_a_model_of_another_task_is_named_as_that(tmp_path, capsys):
    """Fails if a classifier under a language model's recipe is told that its tokenizer has no end of text."""
    path, tokenizer = tmp_path / "model", byte_tokenizer()
    models.model("bert", auto=models.transformers.AutoModelForSequenceClassification).save_pretrained(path)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(path)
    assert run(path, *PARITY) == 2
    said = capsys.readouterr().err
    assert "holds a BertForSequenceClassification" in said and "task.name=classification" in said
    assert "end-of-text" not in said and "the task is causal_lm" in said
