"""Labels of words: which token has them, what counts as a span, and the metrics, against formulas written anew."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import ClassLabel, Dataset, Features, List, Value
from hypothesis import given
from hypothesis import strategies as st
from pytest import approx

from pat.data.checks import label_counts
from pat.data.columns import select_columns
from pat.models import build, tokenizers
from pat.schema import DataConfig, ModelConfig
from pat.tasks import base
from pat.tasks.base import IGNORED
from pat.tasks.spans import tags_of

TASK: Any = base.build({"name": "token_classification"})
TOKENIZER = tokenizers.byte_tokenizer()
NAMES = ["O", "B-LOC", "B-PER", "I-LOC", "I-PER"]
KINDS = ["LOC", "PER"]
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def encoded(words: Sequence[Any], labels: Sequence[Any], max_length: int = 64) -> dict[str, list[Any]]:
    return TASK.encoder(TOKENIZER, max_length, NAMES)({"text": words, "label": labels})


@pytest.mark.parametrize(
    "tags, spans",
    [
        ("O B-PER I-PER O", {(1, 2, "PER")}),
        ("I-PER I-PER O I-PER", {(0, 1, "PER"), (3, 3, "PER")}),  # IOB1
        ("B-PER B-PER I-PER", {(0, 0, "PER"), (1, 2, "PER")}),
        ("B-PER I-LOC I-LOC", {(0, 0, "PER"), (1, 2, "LOC")}),
        ("B-PER E-PER I-PER S-LOC", {(0, 1, "PER"), (2, 2, "PER"), (3, 3, "LOC")}),  # IOBES
        ("B-PER L-PER U-PER U-PER", {(0, 1, "PER"), (2, 2, "PER"), (3, 3, "PER")}),  # BILOU
        ("NOUN NOUN O VERB", {(0, 0, "NOUN"), (1, 1, "NOUN"), (3, 3, "VERB")}),  # no prefixes
        ("O O", set()),
        ("", set()),
    ],
)
def test_spans_are_those_of_conlleval(tags: str, spans: set[tuple[int, int, str]]) -> None:
    """By hand. 12,000 random sequences of three schemes agree with seqeval 1.2.2, which is not a dependency."""
    names = tuple(dict.fromkeys(["O", *tags.split()]))
    known = tags_of(names)
    found = known.spans([names.index(tag) for tag in tags.split()])
    assert {(first, last, known.kinds[kind]) for first, last, kind in found} == spans


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from(["", *KINDS])), max_size=8), st.booleans())
def test_spans_that_are_written_as_tags_are_read_again(runs: list[tuple[int, str]], ends: bool) -> None:
    """IOB2, and IOBES."""
    tags, spans = list[str](), set[tuple[int, int, str]]()
    for length, kind in runs:
        if kind:
            spans.add((len(tags), len(tags) + length - 1, kind))
            middle = [f"B-{kind}", *[f"I-{kind}"] * (length - 1)]
            if ends:
                middle[-1] = f"{'S' if length == 1 else 'E'}-{kind}"
            tags += middle
        else:
            tags += ["O"] * length
    names = ("O", *(f"{prefix}-{kind}" for kind in KINDS for prefix in "BIES"))
    known = tags_of(names)
    found = known.spans([names.index(tag) for tag in tags])
    assert {(first, last, known.kinds[kind]) for first, last, kind in found} == spans


def test_the_first_token_of_a_word_has_its_label_and_nothing_else_has_one() -> None:
    found = encoded([["Änne", "in", "Ulm"]], [["B-PER", "O", "B-LOC"]])
    (ids,), (labels,) = found["input_ids"], found["label"]
    assert bytes(ids).decode() == "Änne in Ulm"
    assert labels == [2, *[IGNORED] * 5, 0, *[IGNORED] * 2, 1, *[IGNORED] * 2]  # a byte is a token: Ä is two
    assert encoded(["Änne in Ulm"], ["B-PER O B-LOC"]) == found, "a table has texts"


def test_what_is_cut_is_counted() -> None:
    encoder = TASK.encoder(TOKENIZER, 6, NAMES)
    made = encoder({"text": [["one", "or", "more"]], "label": [["O", "B-PER", "I-PER"]]})
    assert made["label"] == [[0, *[IGNORED] * 3, 2, IGNORED]]
    assert encoder.counts() == {"rows_cut": 1, "words_left_out": 1}


@pytest.mark.parametrize(
    "words, labels, said",
    [
        (["a", "b"], ["O"], "A row has 2 words and 1 labels: give one label for each word."),
        ([], [], "A row has no words"),
        (["a", None], ["O", "O"], "A row has no words, or one that is no text"),
        (["a"], ["B-ORG"], "The label 'B-ORG' is not one of the training data's"),
        ([""], ["O"], "No word of a text has a token"),
    ],
)
def test_a_row_that_cannot_be_learned_is_one_sentence(words: list[Any], labels: list[Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        encoded([words], [labels])


def test_labels_are_names_whatever_numbers_a_split_gives_them() -> None:
    """Would catch: classes by number, which two files may count in different orders."""

    def rows(names: list[str], labels: list[list[int]]) -> Dataset:
        features = Features({"text": List(Value("string")), "label": List(ClassLabel(names=names))})
        return Dataset.from_dict({"text": [["w"] * len(one) for one in labels], "label": labels}, features)

    splits = {"train": rows(["O", "B-LOC"], [[0, 1], [1]]), "eval": rows(["B-LOC", "O"], [[0, 1, 1]])}
    named = TASK.with_words(splits)
    assert named["train"]["label"][:] == [["O", "B-LOC"], ["B-LOC"]]
    assert named["eval"]["label"][:] == [["B-LOC", "O", "O"]]
    assert TASK.label_names(named["train"]) == ["O", "B-LOC"]
    typed = rows(["O", "B-LOC"], []).features["label"]
    for number in (-1, -100):  # no label: to Python -1 is the last one
        unlabelled = Dataset.from_dict({"label": [[0, 1], [number]]}).cast_column("label", typed)
        with pytest.raises(ValueError, match=f"Row 2 has a word with the label {number}, but the column counts its 2"):
            TASK.with_words({"train": unlabelled})
    with pytest.raises(ValueError, match=r"has no label \(null\)"):
        TASK.label_names(Dataset.from_dict({"label": [["O", None]]}))
    with pytest.raises(ValueError, match=r"are numbers \(0, 1\), which do not say what they mean"):
        TASK.label_names(Dataset.from_dict({"label": [[0, 1]]}))


def test_columns_are_those_of_the_config_or_what_the_hub_calls_them() -> None:
    assert TASK.columns_in(DataConfig(), ["id", "tokens", "ner_tags"]) == {"text": "tokens", "label": "ner_tags"}
    given = DataConfig(text_column="words", label_column="label")
    assert TASK.columns_in(given, ["words", "tokens", "label"]) == {"text": "words", "label": "label"}
    lists = Dataset.from_dict({"tokens": [["a"]], "ner_tags": [["O"]]})
    columns, cfg = TASK.columns_in(DataConfig(), lists.column_names), DataConfig()
    assert select_columns(lists, columns, cfg, "train", by_word=True).column_names == ["text", "label"]
    with pytest.raises(ValueError, match=r"not text: name another \(task=token_classification takes lists of words\)"):
        select_columns(lists, {"text": "tokens"}, cfg, "train")
    numbers = Dataset.from_dict({"text": [[1]], "label": [["O"]]})
    with pytest.raises(ValueError, match="holds .*int64.*, not text: name another"):
        select_columns(numbers, {"text": "text", "label": "label"}, cfg, "train", by_word=True)


def test_words_are_counted_by_label_and_not_samples() -> None:
    samples = Dataset.from_dict({"label": [[IGNORED, 0, IGNORED, 2], [0, IGNORED]]})
    assert label_counts(samples, 3).tolist() == [2, 0, 1]


def model() -> Any:
    torch.manual_seed(0)
    cfg = ModelConfig(init="random", config={"model_type": "bert", "max_position_embeddings": 64, **SIZES})
    return build.build_model(cfg, TASK, torch.float32, tokenizer=TOKENIZER, label_names=NAMES).eval()


def batch_of(rows: list[tuple[str, str]]) -> Any:
    return TASK.collate(encoded([words for words, _ in rows], [labels for _, labels in rows]), TOKENIZER)


ROWS = [
    ("Anna Maria lives in New York", "B-PER I-PER O O B-LOC I-LOC"),
    ("Bonn", "B-LOC"),
    ("nothing to see", "O O O"),
]


def test_the_metrics_are_those_of_all_words_and_spans_however_they_are_spread() -> None:
    made, batch = model(), batch_of(ROWS)
    with torch.no_grad():
        made.classifier.weight.mul_(50.0)  # an untrained head says the same of every word
        logits = made(**base.inputs(batch)).logits
        rows = TASK.token_sums(made, batch)
        apart = [TASK.token_sums(made, batch_of([row])) for row in ROWS]
        sums = TASK.sums(made, batch | {"weight": torch.tensor([1.0, 0.0, 1.0])})
    torch.testing.assert_close(rows, torch.cat(apart), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sums, rows[0] + rows[2])
    right = words = 0
    loss, counts = 0.0, {kind: [0, 0, 0] for kind in KINDS}
    for row, (_, said) in enumerate(ROWS):
        where = torch.nonzero(batch["labels"][row] != IGNORED)[:, 0]
        labels = [NAMES.index(name) for name in said.split()]
        answers = logits[row, where].argmax(-1).tolist()
        loss += float(F.cross_entropy(logits[row, where], torch.tensor(labels), reduction="sum"))
        right, words = right + sum(a == b for a, b in zip(answers, labels, strict=True)), words + len(labels)
        sets = [tags_of(tuple(NAMES)).spans(one) for one in (answers, labels)]
        for number, kind in enumerate(KINDS):
            answered, labelled = ({span for span in one if span[2] == number} for one in sets)
            for place, one in enumerate((answered & labelled, answered, labelled)):
                counts[kind][place] += len(one)
    found, answered, labelled = (sum(each[i] for each in counts.values()) for i in range(3))
    assert answered > 0 and labelled == 3, "the test would show nothing"
    metrics = TASK.metrics(rows.sum(0))
    assert metrics == {
        "f1": approx(2 * found / (answered + labelled)), "precision": approx(found / answered),
        "recall": approx(found / 3), "accuracy": approx(right / words), "loss": approx(loss / words, rel=1e-5),
    }  # fmt: skip
    details = TASK.details(rows.sum(0), NAMES)["classes"]
    assert {kind: each["samples"] for kind, each in details.items()} == {"LOC": 2, "PER": 1}
    assert details["PER"]["recall"] == approx(counts["PER"][0] / 1)
    values, weights = TASK.sample_values(logits, batch)
    assert float(values @ weights / weights.sum()) == approx(right / words) and weights.tolist() == [6, 1, 3]
    assert float(TASK.loss_of(logits, batch)) == approx(loss / words, rel=1e-5)


def test_perfect_answers_have_1_and_none_have_0() -> None:
    perfect = torch.tensor([5.0, 5.0, 0.1, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0])
    assert TASK.metrics(perfect)["f1"] == TASK.metrics(perfect)["precision"] == TASK.metrics(perfect)["recall"] == 1.0
    silent = torch.tensor([5.0, 6.0, 0.1, 0.0, 0.0, 2.0])
    assert [TASK.metrics(silent)[name] for name in ("f1", "precision", "recall")] == [0.0, 0.0, 0.0]


def test_a_logit_that_is_no_number_makes_the_metrics_none() -> None:
    made, batch = model(), batch_of(ROWS)
    with torch.no_grad():
        made.classifier.bias[0] = math.nan
        found = TASK.metrics(TASK.token_sums(made, batch).sum(0))
    assert all(math.isnan(value) for value in found.values())


def test_a_batch_without_words_has_no_loss() -> None:
    """Would catch: NaN gradients where all words of a micro-batch are cut away."""
    labels = torch.full((2, 8), IGNORED)
    logits = torch.zeros(2, 8, 5, requires_grad=True)
    loss = TASK.loss_of(logits, {"labels": labels})
    loss.backward()
    assert float(loss.detach()) == 0.0 and logits.grad is not None and not logits.grad.any()
