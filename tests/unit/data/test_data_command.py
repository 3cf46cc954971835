"""`pat data`: the figures are those of the rows, and what is shown is what the loss is on."""

from __future__ import annotations

import fcntl
import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from pat import cli
from pat.common import progress_bar
from pat.data import prepare, sampler
from pat.data.inspect import calibrating, chosen, sample_text, summarise, table, where
from pat.models import tokenizers
from pat.schema import Config, DataConfig
from pat.tasks import base
from tests.chat_templates import SMOL, tokenizer

BYTES = tokenizers.byte_tokenizer()


def pat(*arguments: str) -> int:
    with pytest.raises(SystemExit) as leaving:
        cli.main(list(arguments))
    assert isinstance(leaving.value.code, int)
    return leaving.value.code


def rows(path: Path, content: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return str(path)


def prepared(tmp_path: Path, content: list[dict[str, Any]], task: Any, of: Any, **fields: Any) -> tuple[Any, Config]:
    source = rows(tmp_path / "rows.jsonl", content)
    given = {"max_length": 16, "train": source, "eval": source, "cache_dir": str(tmp_path / "cache")} | fields
    data = DataConfig(source="json", **given)
    config = Config().changed(data=data, train__num_steps=6, train__global_batch_size=4)
    return prepare.prepare(config.data, of, base.build(task)), config


def test_figures_of_a_classification_are_those_counted_by_hand(tmp_path: Path) -> None:
    """Catches lengths after padding, cut rows that are not counted, labels in another order."""
    content = [{"text": "x" * n, "label": ["no", "yes"][n > 9]} for n in (3, 4, 16, 17, 40, 5)]
    made, config = prepared(tmp_path, content, {"name": "classification"}, BYTES)
    found = summarise(made, config)
    kept = [min(len(row["text"]), 16) for row in content]
    train = found["train"]
    assert (train["rows"], train["rows_cut"], train["tokens"]) == (6, 2, sum(kept))
    assert (train["length_p50"], train["length_p95"], train["length_max"]) == (sorted(kept)[2], 16, 16)
    assert train["labels"] == {"no": 3, "yes": 3} and found["eval"]["rows_in_train"] == 6
    assert found["epochs"] == 4 and found["built"]
    assert "sees the training samples 4 times" in where(found)
    unknown = summarise(made, config, steps_are_known=False)
    assert unknown["epochs"] is None and "times" not in where(unknown)
    assert found["cache_bytes"] == sum(path.stat().st_size for path in Path(found["cache"]).glob("*.arrow"))
    again, config = prepared(tmp_path, content, {"name": "classification"}, BYTES, max_train_samples=2)
    few = summarise(again, config)["train"]
    assert (few["rows"], few["samples"], few["samples_used"], few["tokens"]) == (2, 2, 2, kept[0] + kept[3])
    assert table(found).row_count == 11  # nothing that is not there, and nothing twice


def test_cut_pairs_are_counted_with_a_tokenizer_in_python_too(tmp_path: Path, monkeypatch: Any) -> None:
    content = [{"text": "x" * n, "pair": "yy", "label": n % 2} for n in (3, 14, 15, 30)]
    made, _ = prepared(tmp_path, content, {"name": "classification"}, BYTES, text_pair_column="pair")
    plain = PreTrainedTokenizerFast.__call__

    def without_encodings(self: Any, *args: Any, **options: Any) -> Any:
        encoded = plain(self, *args, **options)
        encoded._encodings = None
        return encoded

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", without_encodings)
    options = {"text_pair_column": "pair", "cache_dir": str(tmp_path / "other")}
    slow, _ = prepared(tmp_path, content, {"name": "classification"}, BYTES, **options)
    assert slow.info["built"] and made.info["train_rows_cut"] == slow.info["train_rows_cut"] == 2


def test_figures_of_packed_chats(tmp_path: Path) -> None:
    """Catches a fraction over samples instead of tokens, and documents that are counted as samples."""
    content = [{"prompt": "ab", "completion": "c" * n} for n in (1, 2, 3, 4, 9, 30)]
    task = {"name": "chat", "packing": "best_fit"}
    made, config = prepared(tmp_path, content, task, BYTES)
    found = summarise(made, config)["train"]
    lengths = [min(2 + n + 1, 16) for n in (1, 2, 3, 4, 9, 30)]  # and the end of the text
    assert found["tokens"] == sum(lengths) and found["rows_cut"] == 1
    assert found["supervised"] == (sum(lengths) - 2 * 6) / sum(lengths)
    assert found["documents_per_sample"] == 6 / found["samples"] and found["samples"] < 6
    assert found["fill"] == sum(lengths) / (16 * found["samples"])
    assert found["fill_unpacked"] == sum(lengths) / (16 * 6)


def test_figures_of_several_sources(tmp_path: Path) -> None:
    """Catches a cache of which only the first source is counted, and epochs that forget the weights."""
    files = {name: rows(tmp_path / name, [{"text": f"{name} {i}"} for i in range(10)]) for name in ("one", "two")}
    sources = {name: {"source": "json", "train": file, "weight": 3.0} for name, file in files.items()}
    data = DataConfig(source="mixture", sources=sources, max_length=16, cache_dir=str(tmp_path / "cache"))
    config = Config().changed(data=data, train__num_steps=6, train__global_batch_size=4)
    found = summarise(prepare.prepare(config.data, BYTES, base.build({"name": "chat"})), config)
    assert found["train"]["rows"] + found["eval"]["rows"] == 20
    assert found["epochs"] == 24 / (3 * found["train"]["samples_used"])
    assert found["cache_bytes"] == sum(path.stat().st_size for path in (tmp_path / "cache" / "data").glob("*/*.arrow"))


def test_a_shown_sample_has_its_mask_label_and_documents(tmp_path: Path) -> None:
    content = [{"prompt": "ab", "completion": "cd"}, {"prompt": "e", "completion": "fghi"}]
    made, _ = prepared(tmp_path, content, {"name": "chat", "packing": "best_fit"}, BYTES)
    shown = sample_text(made, "train", 0, BYTES, 400, False).plain
    assert shown.startswith("train sample 0 of 1: 11 tokens, 8 of them learned, 2 documents\n")
    assert "\nab«cd<eos>»" in shown and "\ne«fghi<eos>»" in shown and shown.count("--- document") == 2
    green = sample_text(made, "train", 0, BYTES, 400, True)
    learned = "".join(green.plain[span.start : span.end] for span in green.spans if "green" in str(span.style))
    assert learned == "fghi<eos>cd<eos>" and "«" not in green.plain
    assert "\ne«fg» ... (3 more tokens)" in sample_text(made, "train", 0, BYTES, 3, False).plain
    texts = [{"text": f"film {i}", "label": ["bad", "good"][i % 2]} for i in range(4)]
    made, _ = prepared(tmp_path, texts, {"name": "classification"}, BYTES)
    assert sample_text(made, "eval", 1, BYTES, 400, False).plain == "eval sample 1 of 4: 6 tokens, label good\nfilm 1"
    made, _ = prepared(tmp_path, [{"text": "words " * 9}] * 4, {"name": "causal_lm"}, BYTES)
    assert "16 tokens, all but the first learned\nwords " in sample_text(made, "train", 0, BYTES, 400, False).plain


def test_shown_samples_are_from_all_over() -> None:
    assert chosen(10, 3, None) == [0, 3, 6] and chosen(2, 5, None) == [0, 1] and chosen(10, 3, 7) == [7]
    with pytest.raises(ValueError, match="--index 10, but the split has 10 samples: give 0 to 9"):
        chosen(10, 3, 10)


def test_the_samples_that_calibrate_are_those_that_training_sees_first(tmp_path: Path) -> None:
    """Fails if what is shown is the beginning of the file."""
    texts = [{"text": f"text {i}", "label": i % 2} for i in range(8)]
    made, config = prepared(tmp_path, texts, {"name": "classification"}, BYTES)
    config = config.changed(seed=5, train__global_batch_size=4, train__micro_batch_size=4)
    classes = base.build({"name": "classification"})
    loader = sampler.BatchLoader(made.train, classes, BYTES, config, rank=0, world=1, prefetch=False)
    (batch,) = loader.batches(0)
    split, first = calibrating(made, config, 4, None)
    assert split == "train" and first != [0, 1, 2, 3]
    assert [made.train[index]["input_ids"] for index in first] == [
        ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert calibrating(made, config, 4, 2) == ("train", [first[2]])
    with pytest.raises(ValueError, match="--index 8, but the split has 8 samples"):
        calibrating(made, config, 4, 8)
    given = replace(made, calibration=made.eval)
    assert (
        calibrating(given, config, 99, None)[0] == "calibration" and len(calibrating(given, config, 99, None)[1]) == 8
    )


def test_the_command_prepares_what_training_finds(tmp_path: Path, capfd: Any, monkeypatch: Any) -> None:
    """Catches a key that `pat data` reads in another way than `pat train`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PAT_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "figures.json"
    assert pat("data", "prepare", "recipe=parity", "data.max_length=32", "--json", str(file)) == 0
    figures = json.loads(file.read_text())
    assert figures["built"] and figures["train"]["length_max"] == 32
    output = capfd.readouterr().out
    assert "tokenised now, in " in output and f"{figures['train']['tokens']:,}" in output
    assert pat("train", "recipe=parity", "data.max_length=32", "--dry-run") == 0
    assert (
        f"tokenised in {figures['cache']}" in capfd.readouterr().out and len(list(tmp_path.glob("cache/data/*/"))) == 1
    )
    assert pat("data", "show", "--n", "2", "recipe=parity", "--split", "eval", "data.max_length=32") == 0
    assert capfd.readouterr().out.count("eval sample") == 2
    assert pat("data", "show", "--n", "1", "recipe=parity", "train.num_steps=???", "data.max_length=32") == 0
    assert pat("data", "show", "--n", "2", "recipe=parity", "--split", "calibration", "data.max_length=32") == 0
    assert capfd.readouterr().out.count("train sample") == 1 + 2
    assert pat("data", "show", "--n", "1", "recipe=parity", "--json", str(file)) == 2
    assert "--json would be ignored" in capfd.readouterr().err
    assert pat("data", "show", "recipe=parity", "--index", "999999") == 2
    assert "--index 999999, but the split has" in capfd.readouterr().err
    assert pat("data", "prepare", "recipe=parity", "data.train=nowhere.jsonl", "data.source=json") == 2
    assert "nowhere.jsonl" in capfd.readouterr().err


def test_who_waits_for_a_tokeniser_says_so(tmp_path: Path, capfd: Any) -> None:
    content = [{"text": f"text {i}", "label": i % 2} for i in range(8)]
    made, config = prepared(tmp_path, content, {"name": "classification"}, BYTES)
    lock = Path(made.info["cache"]).with_suffix(".lock")
    (Path(made.info["cache"]) / "info.json").unlink()  # not whole: it has to be built again
    with open(lock) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        task = base.build({"name": "classification"})
        other = threading.Thread(target=prepare.prepare, args=(config.data, BYTES, task))
        other.start()
        said, end = "", time.monotonic() + 60
        while not said.endswith("\n") and time.monotonic() < end:
            time.sleep(0.02)
            said += capfd.readouterr().out
        assert said == f"another process tokenises this data; waiting for {lock}\n" and other.is_alive()
    other.join(60)
    assert (Path(made.info["cache"]) / "info.json").exists()


def test_progress_without_a_terminal_is_a_line_now_and_then(capfd: Any) -> None:
    with progress_bar.progress_bar("work", 40, done=10, every_s=0.0) as advance:
        advance(10)
        advance(20)
    first, second = capfd.readouterr().err.splitlines()
    assert first.startswith("work: 20 of 40, left 0:00:0") and second == "work: 40 of 40, left 0:00:00"
    with progress_bar.progress_bar("work", 40) as advance:
        advance(40)
    assert capfd.readouterr().err == "", "what takes no time is not worth a line"


def test_a_chat_template_is_shown_with_its_answers(tmp_path: Path) -> None:
    of = tokenizer(SMOL)
    turns = [{"role": "user", "content": "Two and two?"}, {"role": "assistant", "content": "Four."}]
    made, _ = prepared(tmp_path, [{"messages": turns}], {"name": "chat"}, of, max_length=256)
    assert "assistant\n«Four.<|im_end|>»" in sample_text(made, "train", 0, of, 400, False).plain
