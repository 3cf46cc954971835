"""The commands of the pages that plan, read data, prune, search, sweep and measure without a `pat train`: as they are
written, in a folder that has what they name, up to where the first step or measurement would be."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from pat import cli
from pat.commands import distill, sensitivity
from pat.config import places
from pat.models.tokenizers import byte_tokenizer
from pat.run.directory import ExitCode
from pat.sweeps import members
from tests import chat_templates, models
from tests.unit.house.test_docs import FILLED_IN, PLACEHOLDERS, WRITTEN

pytestmark = pytest.mark.slow

COMMANDS = ("prune", "search", "sweep", "sensitivity", "distill", "plan", "data", "submit")
HAVE_DRY_RUN = ("prune", "search", "sweep", "train", "submit")
ROWS, HELD = 800, 250
HUB = "llama3_8b"  # recipes whose model is not on this machine
SENTENCE = "A reviewer says that the cast is better than the plot, and that it rained. "


def written() -> list[list[str]]:
    """The words of each, once."""
    found = [w for w in WRITTEN if w[0] in COMMANDS or (w[0] == "train" and any(k.startswith("budget=") for k in w))]
    return [list(words) for words in dict.fromkeys(tuple(words) for words in found)]


def filled_in(words: list[str]) -> list[str]:
    """With what the reader is to fill in, and folders of this test for those at the root of the reader's machine."""
    command, *rest = words
    keys = {word.partition("=")[0] for word in rest}
    recipe = next((word.removeprefix("recipe=") for word in rest if word.startswith("recipe=")), None)
    if "..." in rest and recipe not in PLACEHOLDERS:
        rest += [f"{key}={value}" for key, value in FILLED_IN.items() if key not in keys]
    rest = [re.sub(r"(^|=)/(m|models/\w+|shared/[\w.]+)$", r"\1\2", word) for word in rest if word != "..."]
    if command == "submit" and recipe is not None and recipe.startswith(HUB):
        rest.append("--unchecked")
    rest = [f"recipe={PLACEHOLDERS.get(str(recipe), recipe)}" if word == f"recipe={recipe}" else word for word in rest]
    return [command, *rest, *(["--dry-run"] if command in HAVE_DRY_RUN and "--dry-run" not in rest else [])]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder, and the process in it; what is measured is not."""
    folder = tmp_path_factory.mktemp("reader")
    classifiers = ("assets/minilm", "exports/dense", "runs/demo/export-dense", "models/mine")
    generators = ("assets/smollm2", "assets/moe", "m")
    chat = chat_templates.tokenizer(chat_templates.SMOL)
    for name in (*classifiers, *generators, "models/llama", "models/tuned"):
        kind, auto = (
            ("bert", AutoModelForSequenceClassification) if name in classifiers else ("llama", AutoModelForCausalLM)
        )
        tokenizer = byte_tokenizer() if name in classifiers else chat
        made = models.model(kind, auto=auto, vocab_size=len(tokenizer), max_position_embeddings=1024)
        made.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rows = [{"text": f"{i}. {SENTENCE * 4}", "label": i % 2} for i in range(ROWS)]
    said = [[{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": SENTENCE}] for i in range(ROWS)]
    for name in ("texts", "t", "f", "heldout", "assets/sotu/train", "assets/reviews/train"):
        _write(folder / f"{name}.jsonl", rows[:-HELD])
    for name in ("assets/sotu/eval", "assets/reviews/eval"):
        _write(folder / f"{name}.jsonl", rows[-HELD:])
    (folder / "shared").mkdir()
    (folder / "shared/train.csv").write_text("text,label\n" + "".join(f'"{r["text"]}",{r["label"]}\n' for r in rows))
    for name, part in (("chats", said), ("assets/chats/train", said[:-HELD]), ("assets/chats/eval", said[-HELD:])):
        _write(folder / f"{name}.jsonl", [{"messages": each} for each in part])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PAT_ASSETS", str(folder / "assets"))
        patch.setenv("PAT_CACHE", str(folder / "cache"))
        patch.setattr(sensitivity, "_measure", lambda *_: ExitCode.DONE)
        patch.setattr(distill, "_cache", lambda *_: ExitCode.DONE)
        yield folder


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("words", [pytest.param(words, id=" ".join(words)[:60]) for words in written()])
def test_it_could_begin(words: list[str], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: a key that is none, or none of that method; a race that ends before the pruning; a search whose
    envelope nothing measures. Of runs with a model of the hub only the keys are looked at."""
    if "--cluster" in words:
        monkeypatch.setattr(members, "problems", lambda *_, **__: {})
    with pytest.raises(SystemExit) as ended:
        cli.main(filled_in(words))
    assert not ended.value.code


def test_all_of_them_are_there() -> None:
    assert {words[0] for words in written()} == {*COMMANDS, "train"} and len(written()) > 20
    for words in written():
        for recipe in (word.removeprefix("recipe=") for word in words if word.startswith("recipe=")):
            assert recipe in (*places.recipes(), *PLACEHOLDERS)
