"""`pat compare` on tiny models: against what transformers computes alone, and the mistakes one can make."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from pat import cli
from pat.compare.divergence import kl
from pat.evaluation import prompts
from pat.evaluation.models import opened
from pat.models.tokenizers import byte_tokenizer
from pat.prompts import reader
from tests import models

PARITY = ["recipe=parity", "data.max_eval_samples=6", "data.max_length=32"]


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("llamas")
    return [models.write_llama(folder / name, seed) for seed, name in enumerate("ab")]


def run(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(["compare", *map(str, arguments)])
    return int(str(stop.value.code))


def figures(tmp_path: Path, *arguments: Any) -> dict[str, Any]:
    assert run(*arguments, "--json", tmp_path / "figures.json", "--device", "cpu") == 0
    return json.loads((tmp_path / "figures.json").read_text())


def write_mix(path: Path, *prompts: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    return path


def greedy(folder: Path, text: str, count: int) -> list[int]:
    """One token after the other, without a cache or padding."""
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    ids: list[int] = byte_tokenizer()(text)["input_ids"]  # pyright: ignore
    for _ in range(count):
        with torch.no_grad():
            ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    return ids[-count:]


def test_on_a_mix_against_transformers(llamas: list[Path], tmp_path: Path) -> None:
    """Fails if padding changes an answer, A and B are swapped, or KL is taken elsewhere than on A's answer."""
    asked = {"short": "ab", "a longer prompt": "what follows this?"}
    answers = {text: [greedy(folder, text, 6) for folder in llamas] for text in asked.values()}
    tokenizer = byte_tokenizer()
    prompts = [
        {"id": name, "prompt": text, "output_tokens": 6, "slices": {"form": name}, "reference": "xyz"}
        for name, text in asked.items()
    ]
    prompts[0] |= {"reference": None, "checks": [{"name": "exact", "text": tokenizer.decode(answers["ab"][0])}]}
    found = figures(tmp_path, *llamas, "--mix", write_mix(tmp_path / "mix.jsonl", *prompts))
    passed, reference = found["outcomes"]
    assert (passed["name"], passed["overall"]["found"]["a"], passed["overall"]["found"]["b"]) == ("passed", 1.0, 0.0)
    (worst,) = passed["regressions"]
    assert worst["pair"]["id"] == "short" and worst["pair"]["slices"] == ["form=short"]
    assert [worst["pair"][one] for one in "ab"] == [tokenizer.decode(ids) for ids in answers["ab"]]
    assert worst["pair"]["first_difference"] == next(
        i for i, (x, y) in enumerate(zip(*answers["ab"], strict=True)) if x != y
    )
    ids = torch.tensor([tokenizer("ab")["input_ids"] + answers["ab"][0]])  # pyright: ignore
    with torch.no_grad():
        a, b = (LlamaForCausalLM.from_pretrained(f).eval()(ids).logits[0, 1:-1].double() for f in llamas)
    expected = torch.nn.functional.kl_div(b.log_softmax(-1), a.log_softmax(-1), log_target=True, reduction="batchmean")
    assert worst["pair"]["kl"] == pytest.approx(float(expected), rel=1e-4)
    text = asked["a longer prompt"]
    labels = torch.tensor([tokenizer(text + "xyz")["input_ids"]])  # pyright: ignore
    labels[0, :-3] = -100
    with torch.no_grad():
        loss = LlamaForCausalLM.from_pretrained(llamas[1])(labels.where(labels >= 0, torch.tensor(
            [tokenizer(text + "xyz")["input_ids"]])), labels=labels).loss  # fmt: skip  # pyright: ignore
    assert reference["overall"]["found"]["b"] == pytest.approx(float(loss), rel=1e-4)


def test_answers_are_greedy_whatever_the_model_ships(llamas: list[Path], tmp_path: Path) -> None:
    """Fails if a model's own settings of sampling, penalties or beams decide its answers. Its end tokens count."""
    expected = greedy(llamas[0], "what follows?", 12)
    model = LlamaForCausalLM.from_pretrained(llamas[0])
    model.generation_config.eos_token_id = expected[8]
    model.save_pretrained(tmp_path / "own")
    byte_tokenizer().save_pretrained(tmp_path / "own")
    file = tmp_path / "own" / "generation_config.json"
    own = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "num_beams": 3, "min_new_tokens": 12}
    own |= {"suppress_tokens": expected[:1], "bad_words_ids": [[expected[1]]]}
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    mix = write_mix(tmp_path / "mix.jsonl", {"id": "x", "prompt": "what follows?", "output_tokens": 12})
    with opened(tmp_path / "own", None, torch.float32, "cpu") as one:
        (answer,) = prompts.ask(reader.read(mix), one, "cpu")
        assert one.model.generation_config.num_beams == 3
    assert list(answer.ids) == expected[: expected.index(expected[8])]


def test_a_model_beside_itself_differs_in_nothing(llamas: list[Path], tmp_path: Path, capsys: Any) -> None:
    """Fails if a figure depends on which of both a model is. What a log contains drives no terminal."""
    prompts = [{"prompt": f"{i} " * (1 + i), "output_tokens": 5, "reference": "[red]no\x1b[31m"} for i in range(9)]
    found = figures(tmp_path, llamas[0], llamas[0], "--mix", write_mix(tmp_path / "mix.jsonl", *prompts))
    assert (found["agreement"], found["kl"], found["first_difference"]) == (1.0, 0.0, None)
    whole = found["outcomes"][0]["overall"]["found"]
    assert (whole["difference"], whole["low"], whole["high"], whole["p"]) == (0.0, 0.0, 0.0, 1.0)
    said = capsys.readouterr().out
    assert "\x1b" not in said and said.splitlines()[-1].startswith("No difference found: Chance explains")


def test_losses_of_other_tokens_are_not_compared(tmp_path: Path, capsys: Any) -> None:
    """Fails if a model is worse because its tokenizer cuts texts into fewer tokens. What passes compares."""
    prompts = [
        {
            "prompt": f"w{i}",
            "output_tokens": 2,
            "reference": "w1 w2",
            "checks": [{"name": "must_answer"}],
        }
        for i in range(12)
    ]
    mix = write_mix(tmp_path / "mix.jsonl", *prompts)
    found = figures(tmp_path, *models.write_uniform(tmp_path), "--mix", mix)
    assert [one["name"] for one in found["outcomes"]] == ["passed"] and found["what"] == "prompts"
    assert "no first differing token, no reference_loss (nats a token)" in capsys.readouterr().out


def test_on_a_recipes_data(llamas: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails if the weighted mean of samples is not the metric that `pat evaluate` measures on the same data."""
    found = figures(tmp_path, *llamas, *PARITY)
    (loss,) = found["outcomes"]
    said = capsys.readouterr().out
    assert found["what"] == "samples" and "6 samples, " in said and "\n  sample " in said and "prompt" not in said
    with pytest.raises(SystemExit):
        cli.main(["evaluate", *map(str, llamas), *PARITY, "--json", str(tmp_path / "e.json"), "--device", "cpu"])
    evaluated = json.loads((tmp_path / "e.json").read_text())["models"]
    for name, model in zip("ab", evaluated, strict=True):
        assert loss["overall"]["found"][name] == pytest.approx(model["metrics"]["loss"], rel=1e-6)
    assert loss["overall"]["found"]["n"] == 6 and not loss["higher_is_better"]
    assert found["kl"] > 0.0 and found["notes"] == []
    harms = [one["harm"] for one in loss["regressions"]]
    assert harms == sorted(harms, reverse=True) and all(harm > 0 for harm in harms)


def test_embeddings_that_are_padded_otherwise_are_compared_without_kl(llamas: list[Path], tmp_path: Path) -> None:
    """Fails if two vocabularies of one tokenizer end in a traceback; all that needs no probabilities is there."""
    model = LlamaForCausalLM.from_pretrained(llamas[0])
    model.resize_token_embeddings(384, mean_resizing=False)
    with torch.no_grad():
        model.lm_head.weight[320:] = 0.0
    model.save_pretrained(tmp_path / "padded")
    byte_tokenizer().save_pretrained(tmp_path / "padded")
    mix = write_mix(tmp_path / "mix.jsonl", *({"prompt": f"text {i}", "output_tokens": 3} for i in range(6)))
    for asked in (PARITY, ("--mix", mix)):
        found = figures(tmp_path, llamas[0], tmp_path / "padded", *asked)
        assert found["kl"] is None and found["agreement"] is not None and found["prompts"] == 6
        assert found["notes"] == ["the models' embeddings are padded to different sizes, so there is no KL"]


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return models.write_classifiers(tmp_path_factory.mktemp("classifiers"), "ab")


def test_classifiers_on_a_mix_and_on_data(classifiers: list[Path], tmp_path: Path) -> None:
    """Fails if right and wrong are swapped, or McNemar's counts are not those of the discordant prompts."""
    prompts = [
        {
            "prompt": f"text {i} {'x' * i}",
            "slices": {"half": str(i % 2)},
            "checks": [{"name": "label", "label": "good"}],
        }
        for i in range(12)
    ]
    found = figures(tmp_path, *classifiers, "--mix", write_mix(tmp_path / "mix.jsonl", *prompts))
    (passed,) = found["outcomes"]
    counts = passed["table"]
    assert counts["both"] == counts["neither"] == 0 and counts["only_a"] + counts["only_b"] == 12
    assert passed["num_regressions"] == counts["only_a"] and found["agreement"] == 0.0
    assert passed["overall"]["found"]["test"] == "McNemar, exact"
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"t {i}", "label": ["bad", "good"][i % 2]}) + "\n" for i in range(8)))
    local = ["data.source=json", f"data.train={rows}", f"data.eval={rows}", "data.max_length=16"]
    (accuracy,) = figures(tmp_path, *classifiers, "recipe=reviews_dense", *local)["outcomes"]
    assert accuracy["overall"]["found"]["a"] + accuracy["overall"]["found"]["b"] == pytest.approx(1.0)
    assert {one["name"] for one in accuracy["slices"]} >= {"label=bad", "label=good"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["a"], "there is no folder a"),
        ([".", *PARITY], "writes: there is 1"),
        ([".", ".", "--mix", "nowhere"], "there is no file nowhere, and no mix of that name"),
        ([".", ".", "--mix", "chats", "seed=1"], "seed=1 would be ignored"),
        ([".", ".", "--outcome", "ok"], "--outcome would be ignored"),
        ([".", ".", "--batch-size", "4"], "--batch-size would be ignored: it goes with --mix"),
        (["--from-logs", "a", "b", "--outcome", "ok", "--seed", "7"], "--seed would be ignored: logs are compared"),
        ([".", ".", *PARITY, "--confidence", "95"], "--confidence 95.0"),
        ([".", ".", *PARITY, "--seed", "-1"], "--seed -1: give 0 or more"),
        ([".", ".", *PARITY, "data=json", "data.train=no.jsonl"], "no file matches 'no.jsonl'"),
        ([".", ".", "--mix", "reviews"], "holds no config.json"),
        ([".", ".", "--allow-code"], "--allow-code would be ignored"),
        (["--from-logs", "a", "b"], "--outcome is missing"),
        (["--from-logs", "a", "b", "--outcome", ","], "--outcome ,: give the column"),
        (["--from-logs", "a", "b", "--outcome", "ok"], "there is no file a"),
        (["--from-logs", "a", "b", "--outcome", "ok", "--mix", "chats"], "--mix would be ignored"),
        (["--from-logs", "a", "b", "--outcome", "ok", "--effect", "-1"], "--effect -1: give a number"),
        (["--from-logs", "a", "b", "--outcome", "ok", "--device", "cpu"], "--device would be ignored"),
        (["--from-logs", "a", "b", "--outcome", "ok", "--dtype", "bf16"], "--dtype would be ignored"),
        (["--from-logs", "a", "b", "--outcome", "ok", "--config-dir", "."], "--config-dir would be ignored"),
        (
            ["--from-logs", "a", "b", "--outcome", "ok", "--effect", "s=1"],
            "--effect is given for s, which is not among",
        ),
    ],
)
def test_mistakes(arguments: list[str], sentence: str, capsys: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


def test_a_model_that_has_diverged_is_not_compared(llamas: list[Path], tmp_path: Path, capsys: Any) -> None:
    """Fails if whatever token has the highest of logits that are all NaN passes a check that any answer passes."""
    model = LlamaForCausalLM.from_pretrained(llamas[1])
    with torch.no_grad():
        model.get_parameter("model.norm.weight").fill_(math.nan)
    model.save_pretrained(tmp_path / "nan")
    byte_tokenizer().save_pretrained(tmp_path / "nan")
    checks = [{"name": "must_answer"}]
    mix = write_mix(tmp_path / "mix.jsonl", {"id": "x", "prompt": "ab", "output_tokens": 4, "checks": checks})
    for given, item in ((["--mix", mix], "the prompt x"), (PARITY, "sample 0")):
        assert run(llamas[0], tmp_path / "nan", *given, "--device", "cpu") == 2
        assert f"{tmp_path / 'nan'} gives logits that are not finite for {item}" in capsys.readouterr().err
    with opened(tmp_path / "nan", None, torch.float32, "cpu") as one:
        (answer,) = prompts.ask(reader.read(mix), one, "cpu")
    assert answer.failure == prompts.DIVERGED


def test_what_cannot_be_asked(llamas: list[Path], classifiers: list[Path], tmp_path: Path, capsys: Any) -> None:
    """Fails if a pickle is read, or a model is asked what it has no template or positions for."""
    chat = write_mix(tmp_path / "chat.jsonl", {"messages": [{"role": "user", "content": "hi"}]})
    long = write_mix(tmp_path / "long.jsonl", {"prompt": "x" * 60})
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for file in llamas[0].iterdir():
        name = "pytorch_model.bin" if file.suffix == ".safetensors" else file.name
        (pickled / name).write_bytes(file.read_bytes())
    for models_, mix, sentence in (
        (llamas, chat, "has no chat template"),
        (llamas, long, "beyond the 64 positions"),
        (classifiers, chat, "is a chat"),
        ([llamas[0], classifiers[0]], long, "holds a BertForSequenceClassification"),
        ([pickled, llamas[0]], long, "pickles are not read"),
    ):
        assert run(*models_, "--mix", mix) == 2
        assert sentence in capsys.readouterr().err


def test_words_that_a_model_never_gives_have_no_part_in_the_divergence() -> None:
    """0 log 0 is 0: a model that masks a part of its vocabulary with -inf."""
    logits = torch.tensor([[1.0, 2.0, -torch.inf]])
    assert kl(logits, logits).tolist() == [0.0]
    assert kl(logits, torch.tensor([[2.0, 1.0, 0.0]])).isfinite().all()
