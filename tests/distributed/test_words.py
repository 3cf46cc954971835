"""Labels of words: pruned while they are learned, the same bits at every ZeRO stage, and what stock classes load."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest import approx
from safetensors.torch import load_file
from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

from pat import cli
from tests.distributed import ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
SIZES = {
    "model_type": "bert", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
NAMES = ["Ada", "Bob", "Carl", "Dora"]
OTHERS = ["asks", "sees", "no", "trees", "and", "then"]


def write_rows(path: Path, count: int, seed: int) -> None:
    """Names have a capital letter, and two in a row are one person."""
    drawn, lines = random.Random(seed), list[str]()
    for _ in range(count):
        words, tags = list[str](), list[str]()
        for _ in range(drawn.randint(2, 4)):
            name = [drawn.choice(NAMES) for _ in range(drawn.randint(1, 2))]
            words += [*name, drawn.choice(OTHERS)]
            tags += ["B-PER", *["I-PER"] * (len(name) - 1), "O"]
        lines.append(json.dumps({"tokens": words, "ner_tags": tags}))
    path.write_text("\n".join(lines) + "\n")


def trained(folder: Path, stage: int) -> Path:
    run = folder / f"zero{stage}"
    sizes = [f"+model.config.{name}={value}" for name, value in SIZES.items()]
    overrides = [
        "recipe=encoder", "task=token_classification", "data=json", f"data.train={folder / 'train.jsonl'}",
        f"data.eval={folder / 'eval.jsonl'}", "data.max_length=64", f"data.cache_dir={folder}", "model.init=random",
        *sizes, "model.tokenizer=byte", "train.num_steps=40", "train.global_batch_size=8", "optim.lr=5e-3",
        "optim.head_lr=5e-3", "optim.implementation=foreach", "pruners.weights.budget.sparsity=0.5",
        "pruners.weights.criterion.num_samples=64", "pruners.weights.criterion.gradient_samples=16", "logger=none",
        "engine.kernels=eager", "engine.world_size=2", f"engine.zero_stage={stage}", f"run.dir={run}",
    ]  # fmt: skip
    logs = [folder / f"zero{stage}.{rank}" for rank in range(2)]
    codes = ranks.exit_codes(ranks.fork_ranks("pat.cli", ["train", *overrides], logs, cwd=folder), 600)
    assert codes == [0, 0], logs[0].read_text(errors="replace")[-4000:]
    return run


def exported(run: Path, out: Path) -> Path:
    with pytest.raises(SystemExit) as left:
        cli.main(["export", str(run), "--out", str(out)])
    assert left.value.code == 0
    return out


def spans_of(tags: list[str]) -> set[tuple[int, int]]:
    """First and last word of each person; written anew, for tags that are B, I or O."""
    found, first = set[tuple[int, int]](), None
    for word, tag in enumerate([*tags, "O"]):
        if first is not None and tag != "I-PER":
            found.add((first, word - 1))
            first = None
        if tag == "B-PER" or (tag == "I-PER" and first is None):
            first = word
    return found


def by_transformers(folder: Path, rows: list[dict[str, Any]]) -> dict[str, float]:
    """F1 and accuracy of what a stock class answers at the first byte of each word."""
    model, tokenizer = AutoModelForTokenClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = answered = labelled = right = words = 0
    for row in rows:
        text, starts = " ".join(row["tokens"]), [0]
        for word in row["tokens"][:-1]:
            starts.append(starts[-1] + len(word) + 1)
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
        answers = [model.config.id2label[int(logits[start].argmax())] for start in starts]
        said, true = spans_of(answers), spans_of(row["ner_tags"])
        found, answered, labelled = found + len(said & true), answered + len(said), labelled + len(true)
        right, words = right + sum(a == b for a, b in zip(answers, row["ner_tags"], strict=True)), words + len(answers)
    return {"f1": 2 * found / (answered + labelled), "accuracy": right / words}


def test_words_are_learned_pruned_exported_and_judged(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", 120, 0)
    write_rows(tmp_path / "eval.jsonl", 24, 1)
    runs = {stage: trained(tmp_path, stage) for stage in (3, 1, 2)}
    summaries = {stage: json.loads((run / "summary.json").read_text()) for stage, run in runs.items()}
    assert len({summary["weights_sha256"] for summary in summaries.values()}) == 1
    assert len({json.dumps(summary["metrics"]) for summary in summaries.values()}) == 1
    folder = exported(runs[3], tmp_path / "model")
    matrices = [v for k, v in load_file(folder / "model.safetensors").items() if ".layer." in k and v.dim() == 2]
    assert sum(int((each == 0).sum()) for each in matrices) * 2 == sum(each.numel() for each in matrices)
    rows = [json.loads(line) for line in (tmp_path / "eval.jsonl").read_text().splitlines()]
    metrics, judged = summaries[3]["metrics"], by_transformers(folder, rows)
    assert 0.3 < judged["f1"] < 1.0, "else a constant answer would pass"
    assert {name: metrics[name] for name in judged} == approx(judged)
    card = (folder / "README.md").read_text()
    assert "| PER |" in card
    said = pipeline("token-classification", model=str(folder))("Ada sees Bob")
    assert {one["entity"] for one in said} <= {"B-PER", "I-PER"}
    figures = tmp_path / "figures.json"
    with pytest.raises(SystemExit) as left:
        cli.main(["evaluate", str(folder), f"data.eval={tmp_path / 'eval.jsonl'}", "--json", str(figures)])
    assert left.value.code == 0
    assert json.loads(figures.read_text())["models"][0]["metrics"]["f1"] == approx(judged["f1"])
