"""`pat evaluate --mix` and `--tasks`: figures by hand, paired groups, and the mistakes one can make."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from pat import cli
from pat.evaluation import harness
from pat.evaluation.groups import bias
from pat.evaluation.measures import of_answers
from pat.evaluation.models import opened
from pat.evaluation.prompts import Answer, _batches, as_trained, ask, ids_of
from pat.models import limits
from pat.models.tokenizers import byte_tokenizer
from pat.profiling import run as run_profile
from pat.prompts import reader
from pat.prompts.mix import Head, Mix, Prompt
from pat.statistics.paired import mcnemar
from pat.tasks import base
from pat.tasks.templates import ChatTemplate
from tests import models
from tests.chat_templates import LLAMA, QWEN, SMOL, tokenizer

LOCAL = ["data.source=json", "data.max_length=16"]


def run(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", *map(str, arguments), "--device", "cpu"])
    return int(str(stop.value.code))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "a"
    model = models.model("bert", auto=AutoModelForSequenceClassification, vocab_size=320)
    model.config.id2label, model.config.label2id = {0: "bad", 1: "good"}, {"bad": 0, "good": 1}
    model.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def by_hand(folder: Path, texts: list[str]) -> list[list[float]]:
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder).eval(), byte_tokenizer()
    encoded = [tokenizer(text, return_tensors="pt") for text in texts]
    with torch.no_grad():
        return [model(**one).logits[0].softmax(-1).tolist() for one in encoded]  # pyright: ignore


@pytest.mark.slow
def test_figures_of_a_recipes_data_and_of_a_mix_are_those_by_hand(
    classifier: Path, tmp_path: Path, capsys: Any
) -> None:
    """Fails if a slice has another's samples, a figure no interval around it, or a probability is not the answer's."""
    texts = [f"text {i:2}" for i in range(12)]
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"text": t, "label": ["bad", "good"][i % 2]}) + "\n" for i, t in enumerate(texts))
    )
    options = ["recipe=reviews_dense", *LOCAL, f"data.train={rows}", f"data.eval={rows}"]
    assert run(classifier, *options, "--json", tmp_path / "f.json") == 0
    (found,) = json.loads((tmp_path / "f.json").read_text())["models"]
    said = by_hand(classifier, texts)
    right = np.array([float(np.argmax(p) == i % 2) for i, p in enumerate(said)])
    figures = {one["name"]: one for one in found["figures"]}
    assert set(figures) == {"accuracy", "macro_f1", "loss", "calibration_error"}
    for name, value in found["metrics"].items():
        overall = figures[name]["overall"]
        assert overall["value"] == pytest.approx(value) and overall["low"] <= value <= overall["high"], name
    good = figures["accuracy"]["slices"]["label=good"]
    assert (good["n"], good["value"]) == (6, right[1::2].mean())
    loss = figures["loss"]["slices"]["label=bad"]["value"]
    assert loss == pytest.approx(-np.log([p[0] for p in said[::2]]).mean(), rel=1e-4)
    gaps = abs(right - np.max(said, axis=1))  # fewer samples than bins: each is a bin of its own
    assert figures["calibration_error"]["overall"]["value"] == pytest.approx(gaps.mean(), rel=1e-4)
    assert figures["calibration_error"]["overall"]["low"] is None
    in_slices = {name: {each.partition("=")[0] for each in one["slices"]} for name, one in figures.items()}
    assert "label" in in_slices["accuracy"] and "label" not in in_slices["macro_f1"], (
        "one class has no mean over classes"
    )
    assert in_slices["calibration_error"] == in_slices["macro_f1"]
    assert "label=good" in capsys.readouterr().out
    checks = [[{"name": "label", "label": ["bad", "good"][i % 2]}] for i in range(12)]
    prompts = [{"prompt": t, "slices": {"n": str(i % 2)}, "checks": checks[i]} for i, t in enumerate(texts)]
    (tmp_path / "mix.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    assert run(classifier, classifier, "--mix", tmp_path / "mix.jsonl", "--json", tmp_path / "f.json") == 0
    first, second = json.loads((tmp_path / "f.json").read_text())["models"]
    on_mix = {one["name"]: one for one in first["figures"]}
    assert first == second and on_mix["passed"]["slices"]["n=1"]["value"] == right[1::2].mean()
    assert on_mix["calibration_error"]["overall"]["value"] == pytest.approx(gaps.mean(), rel=1e-4)
    assert len(first["failures"]) == int((right == 0).sum()) and not first["bias"]


def groups_of(failing: str, share: float, seed: int) -> tuple[Mix, list[Answer]]:
    """40 pairs of prompts that differ in he and she; one group fails more often by `share`. All losses are 1."""
    rng, prompts, answers = np.random.default_rng(seed), [], []
    for i in range(40):
        base = rng.random() < 0.3
        for group in ("he", "she"):
            check = [{"name": "exact", "text": "x"}]
            given = {"prompt": f"{group} {i}", "pair": str(i), "slices": {"gender": group}, "checks": check}
            prompts.append(Prompt.model_validate(given | {"id": f"{i}{group}"}))
            fails = base or (group == failing and rng.random() < share)
            answers.append(Answer("y", "no" if fails else None, reference_loss=1.0))
    return Mix(Head(), Path("m"), tuple(prompts)), answers


def test_a_planted_bias_is_found_and_an_unplanted_one_is_not() -> None:
    """Fails if pairs are parted, the wrong group is named, or p is not McNemar's of the discordant pairs."""
    mix, answers = groups_of("she", 0.4, 0)
    passed, loss = bias(mix, of_answers(mix, answers))
    discordant = sum(a.failure != b.failure for a, b in zip(answers[::2], answers[1::2], strict=True))
    assert (passed.measure, passed.dimension, passed.a, passed.b, passed.worse) == (
        "passed",
        "gender",
        "he",
        "she",
        "she",
    )
    assert passed.found.n == 40 and passed.p_adjusted == pytest.approx(mcnemar(0, discordant))
    assert passed.found.difference == pytest.approx(-discordant / 40) and loss.worse == ""
    turned, answers = groups_of("he", 0.4, 0)
    assert bias(turned, of_answers(turned, answers))[0].worse == "he"
    fair = [groups_of("neither", 0.0, seed) for seed in range(5)]
    assert not any(one.worse for mix, answers in fair for one in bias(mix, of_answers(mix, answers)))


def test_the_command_says_which_group_fares_worse(
    classifier: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked of one group is what the model answers, and of the other what it does not."""
    texts = [f"{group} {i}" for i in range(12) for group in ("he", "she")]
    said = [["bad", "good"][int(np.argmax(p))] for p in by_hand(classifier, texts)]
    prompts = []
    for i, (text, label) in enumerate(zip(texts, said, strict=True)):
        group = text.split()[0]
        wanted = label if group == "he" else {"bad": "good", "good": "bad"}[label]
        check = [{"name": "label", "label": wanted}]
        prompts.append({"prompt": text, "pair": str(i // 2), "slices": {"gender": group}, "checks": check})
    (tmp_path / "mix.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    monkeypatch.setenv("COLUMNS", "200")
    assert run(classifier, "--mix", tmp_path / "mix.jsonl", "--json", tmp_path / "f.json") == 0
    passed = json.loads((tmp_path / "f.json").read_text())["models"][0]["bias"][0]
    assert (passed["dimension"], passed["a"], passed["b"], passed["worse"]) == ("gender", "he", "she", "she")
    assert (passed["found"]["n"], passed["found"]["a"], passed["found"]["b"]) == (12, 1.0, 0.0)
    table = capsys.readouterr().out.partition("Paired groups: ")[2]
    (line,) = [line for line in table.splitlines() if "gender: he, she" in line and "passed" in line]
    assert line.split()[4:8] == ["12", "1", "0", "-1"] and "she fares worse" in line


def test_a_classifier_that_takes_texts_of_any_length(tmp_path: Path) -> None:
    """Fails if a limit is made up for a model without positions, whose tokenizer knows none either; or one is lost."""
    model = models.model("bloom", auto=AutoModelForSequenceClassification, vocab_size=320, pad_token_id=256)
    model.save_pretrained(tmp_path / "bloom")
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path / "bloom")
    assert tokenizer.model_max_length > 1e20 and getattr(model.config, "max_position_embeddings", None) is None
    text = "word " * 40
    mix = Mix(Head(), Path("m"), (Prompt.model_validate({"prompt": text, "id": "x"}),))
    with opened(tmp_path / "bloom", None, torch.float32, "cpu") as one:
        (answer,) = ask(mix, one, "cpu")
    with torch.no_grad():
        expected = model(**tokenizer(text, return_tensors="pt")).logits[0]
    assert answer.logits is not None and torch.allclose(answer.logits, expected, atol=1e-4)
    (ids,) = run_profile._tokens(mix, run_profile.Model("bloom", tmp_path / "bloom", False, None, []))
    assert len(ids) == len(text) and limits.cut(None, tokenizer) == {}
    tokenizer.model_max_length = 9
    assert limits.cut(64, tokenizer) == limits.cut(None, tokenizer) == {"truncation": True, "max_length": 9}


def test_a_label_that_a_classifier_cannot_give_is_no_mistake_of_its(
    classifier: Path, tmp_path: Path, capsys: Any
) -> None:
    prompts = [{"prompt": label, "checks": [{"name": "label", "label": label}]} for label in ("Good.", "goood")]
    (tmp_path / "mix.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    assert run(classifier, "--mix", tmp_path / "mix.jsonl") == 2
    said = capsys.readouterr().err
    assert "has the label 'goood', which is none of the 2 of" in said and "did you mean good?" in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([".", "--mix", "chats", "seed=1"], "seed=1 would be ignored: --mix says what is asked"),
        ([".", "--mix", "chats", "--tasks", "x"], "--mix and --tasks"),
        ([".", "--limit", "3"], "--limit would be ignored: it goes with --tasks"),
        ([".", "--allow-code"], "--allow-code would be ignored"),
        ([".", "--tasks", "x", "--limit", "0"], "--limit 1 or more"),
        ([".", "--tasks", "x", "--seed", "3"], "--seed would be ignored: lm-evaluation-harness judges"),
        ([".", "--worst", "3"], "--worst would be ignored: it goes with --mix"),
        ([".", "--batch-size", "4"], "--batch-size would be ignored: it goes with --mix"),
        ([".", "--tasks", "x", "--include-path", "."], "add --allow-code if you trust them"),
        ([".", "--tasks", "x", "--include-path", "no", "--allow-code"], "--include-path no: there is no such folder"),
        ([".", "--mix", "chats", "--confidence", "95"], "--confidence 95.0"),
    ],
)
def test_mistakes(arguments: list[str], sentence: str, capsys: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


@pytest.fixture
def local(tmp_path: Path) -> tuple[list[dict[str, Any]], list[Any]]:
    """Rows of a task of lm-evaluation-harness, and the options that ask it; a model for it is in tmp_path / "model"."""
    if os.environ.get("CI") != "true":  # there it is installed
        pytest.importorskip("lm_eval")
    models.model("llama", auto=AutoModelForCausalLM, vocab_size=320).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"q": f"question {i}", "a": i % 2} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text(f"""\
task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "rows.jsonl"}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: ["yes", "no"]
doc_to_target: "{{{{a}}}}"
metric_list: [{{metric: acc}}]
""")
    return rows, ["--tasks", "mine", "--include-path", tmp_path / "tasks", "--allow-code", "--output", tmp_path / "out"]


@pytest.mark.slow
def test_a_local_task_of_lm_evaluation_harness(local: Any, tmp_path: Path, capsys: Any) -> None:
    """Fails if another model is asked, files are not the harness's own, or something is fetched. By hand: the likelier
    of two continuations."""
    (rows, tasks), plain = local, byte_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")

    def likelihood(question: str, answer: str) -> float:
        ids, before = plain(f"{question} {answer}")["input_ids"], len(plain(question)["input_ids"])  # pyright: ignore
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return float(sum(logs[i - 1, ids[i]] for i in range(before, len(ids))))

    answers = [int(likelihood(row["q"], "no") > likelihood(row["q"], "yes")) for row in rows]
    assert run(tmp_path / "model", *tasks, "--json", tmp_path / "f.json") == 0
    (found,) = json.loads((tmp_path / "f.json").read_text())["models"]
    assert found["results"]["mine"]["acc,none"] == np.mean(
        [a == row["a"] for a, row in zip(answers, rows, strict=True)]
    )
    (kept,) = (tmp_path / "out" / "model").glob("results_*.json")
    assert json.loads(kept.read_text())["results"]["mine"]["acc,none"] == found["results"]["mine"]["acc,none"]
    assert len(next((tmp_path / "out" / "model").glob("samples_mine_*.jsonl")).read_text().splitlines()) == 8
    assert "acc" in capsys.readouterr().out
    assert run(tmp_path / "model", "--tasks", "mein") == 2
    assert "has no such task" in capsys.readouterr().err


@pytest.mark.slow
def test_the_harness_asks_in_chats_as_the_model_was_trained(
    local: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text and tokens: also where the tokenizer begins each text with a token that the chat template does not write."""
    rows, tasks = local
    assert run(tmp_path / "model", *tasks, "--apply-chat-template") == 2
    assert "has no chat template" in capsys.readouterr().err
    of = tokenizer(QWEN)
    first = ("<|im_end|>", of.convert_tokens_to_ids("<|im_end|>"))
    of._tokenizer.post_processor = TemplateProcessing("<|im_end|> $A", "<|im_end|> $A $B", [first])
    of.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "export.json").write_text(json.dumps({"config": {"task": {"template_options": QUIET}}}))
    seen, asks = list[tuple[str, str, list[int]]](), harness.imported("lm_eval.models.huggingface").HFLM
    asked = asks._loglikelihood_tokens

    def noted(self: Any, requests: Any, **more: Any) -> Any:
        seen.extend((*texts, [*before, *answer]) for texts, before, answer in requests)
        return asked(self, requests, **more)

    monkeypatch.setattr(asks, "_loglikelihood_tokens", noted)
    assert run(tmp_path / "model", *tasks, "--apply-chat-template") == 0
    expected = {ChatTemplate(of, QUIET).asked([{"role": "user", "content": row["q"]}]) for row in rows}
    assert {text for text, _, _ in seen} == expected and all("</think>" in text for text in expected)
    for text, answer, ids in seen:
        assert ids == of(text + answer, add_special_tokens=False)["input_ids"] != of(text + answer)["input_ids"]
    seen.clear()
    assert run(tmp_path / "model", *tasks, "--num-fewshot", "1", "--apply-chat-template") == 0
    assert all(text.count("<|im_start|>user") == 2 == text.count("<|im_start|>assistant") for text, _, _ in seen)
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    assert run(tmp_path / "model", *tasks, "--apply-chat-template") == 2
    assert "TemplateError: no" in capsys.readouterr().err


def test_a_batch_stays_within_the_positions_of_its_longest_and_its_wordiest_prompt() -> None:
    """Each prompt fits alone; padded to the longest, with as many new tokens as the wordiest has, they may not."""
    asked, most = [[1] * 55, [1] * 5, [1] * 10], [4, 50, 4]
    assert list(_batches([1, 0, 2], asked, most, 8, 64)) == [[1], [0, 2]]
    assert list(_batches([1, 0, 2], asked, most, 8, None)) == [[1, 0, 2]]
    assert list(_batches([1, 0, 2], asked, most, 2, None)) == [[1, 0], [2]]
    assert list(_batches([], asked, most, 2, None)) == []


QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one?"}]
QUIET = {"enable_thinking": False}


@pytest.mark.parametrize(
    ("template", "options"), [(SMOL, {}), (LLAMA, {}), (LLAMA, {"date_string": "1 May"}), (QWEN, {}), (QWEN, QUIET)]
)
def test_a_chat_is_asked_as_it_was_trained(template: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Up to the answer the tokens are those of a training row, on all days and with the options of the template."""
    of = tokenizer(template)
    rows = {"messages": [[*QUESTION, {"role": "assistant", "content": "yes"}]]}
    samples = base.build({"name": "chat", "template_options": options}).encoder(of, 512, None)(rows)
    trained, learned = samples["input_ids"][0], samples["supervised"][0]
    prompt = Prompt.model_validate({"id": "x", "messages": QUESTION})
    assert ids_of(prompt, of, tmp_path, options) == trained[: learned.index(True)]
    mix = Mix(Head(template_options=options or None), tmp_path, (prompt,))
    of.save_pretrained(tmp_path)
    models.config("llama", vocab_size=320).save_pretrained(tmp_path)
    (timed,) = run_profile._tokens(mix, run_profile.Model("x", tmp_path, True, None, []))
    assert timed == trained[: learned.index(True)], "`pat profile` times the same"


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model that says it was trained with an option of its chat template."""
    path = tmp_path_factory.mktemp("models") / "quiet"
    of = tokenizer(QWEN)
    models.model("llama", auto=AutoModelForCausalLM, vocab_size=320, max_position_embeddings=256).save_pretrained(path)
    of.save_pretrained(path)
    (path / "export.json").write_text(json.dumps({"config": {"task": {"template_options": QUIET}}}))
    return path


def test_chats_are_asked_as_the_models_were_trained_or_as_the_mix_says(quiet: Path, tmp_path: Path) -> None:
    """Fails if a model is judged by chats that it was never trained to answer, or two models by different ones."""
    chat, text = {"messages": QUESTION, "output_tokens": 1}, {"prompt": "one?", "output_tokens": 1}
    run, loud, other = tmp_path / "run", tmp_path / "loud", tmp_path / "other"
    for path in (run, loud, other):
        path.mkdir()
    (run / "config.yaml").write_text("task: {template_options: {enable_thinking: false}}")
    (loud / "export.json").write_text('{"config": {"task": {"template_options": {"enable_thinking": true}}}}')
    (other / "export.json").write_text('{"config": "somebody else\'s"}')

    def asked(paths: list[Path], *items: Any) -> str:
        path = tmp_path / "mix.jsonl"
        path.write_text("".join(json.dumps(item) + "\n" for item in items))
        mix = reader.read(path)
        reader.write(path, mix.head, mix.prompts)
        assert reader.read(path).head == mix.head
        (answer,) = ask(as_trained(reader.read(path), paths), one, "cpu")
        return one.tokenizer.decode(list(answer.asked))

    plain, silent = "<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    with opened(quiet, None, torch.float32, "cpu") as one:
        for paths in ([quiet], [other, quiet], [run], [run, quiet]):
            assert asked(paths, chat).endswith(silent), paths
        assert asked([other], chat).endswith(plain)
        with pytest.raises(ValueError, match="loud was trained with task.template_options=.*True.*quiet with .*False"):
            asked([quiet, loud], chat)
        assert asked([quiet, loud], {"mix": {"template_options": QUIET}}, chat).endswith(silent)
        assert asked([quiet], {"mix": {"template_options": {}}}, chat).endswith(plain)
        assert asked([quiet, loud], text) == "one?", "a text needs no template"


def test_a_pair_without_a_figure_is_left_out_of_the_bias() -> None:
    mix, answers = groups_of("a", 0.5, 0)
    whole = bias(mix, of_answers(mix, answers))
    measured = of_answers(mix, answers)
    for name in measured.main:
        values = measured.measures[name].values
        assert values is not None
        values[:] = np.nan
    assert whole and bias(mix, measured) == []


def test_results_of_an_earlier_run_do_not_pass_for_those_that_could_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "results_2026-01-01.json").write_text("{}")
    tracker: Any = type("Tracker", (), {"save_results_aggregated": lambda *_, **__: None})()  # it only warns
    with pytest.raises(OSError, match="could not write its results"):
        harness._save(tracker, {"samples": {}, "configs": {}}, tmp_path)  # pyright: ignore[reportPrivateUsage]
