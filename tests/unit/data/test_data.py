from __future__ import annotations

import json
import multiprocessing
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset
from pyarrow import parquet

from pat.data import prepare, sources
from pat.data.generated import generate
from pat.models import tokenizers
from pat.schema import DataConfig, GeneratedConfig
from pat.tasks import base

TOKENIZER = tokenizers.byte_tokenizer()
LM = base.build({"name": "causal_lm"})
CLASSES = base.build({"name": "classification"})


def write_json(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def reviews(count: int = 40) -> list[dict[str, Any]]:
    return [{"text": f"review number {i}", "label": ["neg", "pos"][i % 2]} for i in range(count)]


def json_config(tmp_path: Path, rows: list[dict[str, Any]] | None = None, **fields: Any) -> DataConfig:
    train = write_json(tmp_path / "train.jsonl", reviews() if rows is None else rows)
    values = {"max_length": 16, "train": train, "cache_dir": str(tmp_path / "cache"), "eval_fraction": 0.25} | fields
    return DataConfig(source="json", **values)


# --- the cache


def test_a_second_call_finds_what_the_first_has_built_and_changes_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "RACY_S", 600.0)  # on a busy machine the steps below take longer than 2 s
    cfg = json_config(tmp_path)
    assert isinstance(cfg.train, str)
    first, second = (prepare.prepare(cfg, TOKENIZER, CLASSES, seed) for seed in (0, 1))
    assert first.info["built"] and not second.info["built"]
    assert first.train[:] == second.train[:] and first.eval[:] == second.eval[:]
    assert first.label_names == ["neg", "pos"] and first.num_labels == 2
    moved = tmp_path / "elsewhere.jsonl"
    moved.write_bytes(Path(cfg.train).read_bytes())
    assert not prepare.prepare(json_config(tmp_path, train=str(moved)), TOKENIZER, CLASSES).info["built"]
    assert prepare.prepare(json_config(tmp_path, max_length=12), TOKENIZER, CLASSES).info["built"]
    assert prepare.prepare(cfg, TOKENIZER, LM).info["built"]
    other = tokenizers.byte_tokenizer()
    other.add_tokens(["review"])
    assert prepare.prepare(cfg, other, CLASSES).info["built"]
    stat = os.stat(cfg.train)
    write_json(Path(cfg.train), [row | {"text": row["text"].upper()} for row in reviews()])
    os.utime(cfg.train, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same name, size and date, other content
    assert prepare.prepare(cfg, TOKENIZER, CLASSES).info["built"]
    assert not list((tmp_path / "cache").rglob("*.part")) and not list((tmp_path / "cache").rglob("raw"))


def test_digests_of_old_files_are_remembered_and_forgotten_when_they_change(tmp_path: Path) -> None:
    cfg = json_config(tmp_path)
    memory = tmp_path / "digests"
    assert isinstance(cfg.train, str)
    os.utime(cfg.train, (1e9, 1e9))
    before = sources.digest(cfg, "train", 0, memory)
    (note,) = memory.iterdir()
    note.write_text(note.read_text().replace('"sha256": "', '"sha256": "remembered'))
    assert "remembered" in sources.digest(cfg, "train", 0, memory)
    os.utime(cfg.train, (1e9, 2e9))
    assert sources.digest(cfg, "train", 0, memory) == before
    note.write_text("{torn")
    assert sources.digest(cfg, "train", 0, memory) == before
    nowhere = tmp_path / "train.jsonl" / "digests"  # a memory that cannot be written
    assert sources.digest(cfg, "train", 0, nowhere) == before


def test_a_torn_entry_is_built_again(tmp_path: Path) -> None:
    cfg = json_config(tmp_path)
    whole = prepare.prepare(cfg, TOKENIZER, CLASSES)
    rows = whole.train[:]
    folder = Path(whole.info["cache"])
    left = folder.with_name(folder.name + ".dead.part")
    left.mkdir()
    for tear in ("train.arrow", "eval.arrow", "info.json"):
        content = (folder / tear).read_bytes()
        (folder / tear).unlink()
        (folder / tear).write_bytes(content[:-10])
        again = prepare.prepare(cfg, TOKENIZER, CLASSES)
        assert again.info["built"] and again.train[:] == rows
    assert not left.exists()


@pytest.mark.slow
def test_processes_that_start_together_build_once(tmp_path: Path) -> None:
    cfg = json_config(tmp_path, reviews(3000))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pat.data", "pat.models", "pat.tasks"])
    ready = context.Barrier(3)
    with context.Pool(3, initializer=ready.wait) as pool:  # no process takes a job before all are there
        made = pool.starmap(prepare.prepare, [(cfg, TOKENIZER, LM)] * 3, chunksize=1)
    assert sorted(one.info["built"] for one in made) == [False, False, True]
    assert made[0].train[:] == made[1].train[:] == made[2].train[:]


# --- what is held out, and what is read


def test_equal_texts_are_never_on_both_sides(tmp_path: Path) -> None:
    rows = [{"text": f"text {i % 60}", "label": i % 3} for i in range(300)]  # equal texts, with different labels too
    made = prepare.prepare(json_config(tmp_path, rows, eval_fraction=0.3), TOKENIZER, CLASSES)
    train, held = ({tuple(ids) for ids in split["input_ids"]} for split in (made.train, made.eval))
    assert train and held and not train & held
    assert len(made.train) + len(made.eval) == 300
    assert 30 < len(made.eval) < 150
    more = [{"text": f"new {i}", "label": 0} for i in range(50)]
    grown = prepare.prepare(json_config(tmp_path, more + rows, eval_fraction=0.3), TOKENIZER, CLASSES)
    assert held <= {tuple(ids) for ids in grown.eval["input_ids"]}


def test_one_row_at_least_is_held_out_and_one_stays(tmp_path: Path) -> None:
    for fraction in (1e-9, 1 - 1e-9):
        made = prepare.prepare(json_config(tmp_path, reviews(3), eval_fraction=fraction), TOKENIZER, CLASSES)
        assert len(made.train) >= 1 and len(made.eval) >= 1 and len(made.train) + len(made.eval) == 3


def test_an_eval_file_is_used_and_its_rows_that_training_sees_are_counted(tmp_path: Path) -> None:
    held = write_json(tmp_path / "eval.jsonl", [*reviews(3), {"text": "new", "label": "pos"}])
    made = prepare.prepare(json_config(tmp_path, eval=held), TOKENIZER, CLASSES)
    assert (len(made.train), len(made.eval), made.info["eval_rows_in_train"]) == (40, 4, 3)
    assert made.eval["label"] == [0, 1, 0, 1]


def test_limits_take_samples_from_all_over(tmp_path: Path) -> None:
    made = prepare.prepare(json_config(tmp_path, max_train_samples=4, max_eval_samples=1), TOKENIZER, CLASSES)
    assert (len(made.train), len(made.eval)) == (4, 1)
    texts = ["".join(map(chr, ids)) for ids in made.train["input_ids"]]
    assert len({text[:15] for text in texts}) == 4


@pytest.mark.parametrize("limit", [20, 60, 100])
@pytest.mark.parametrize("surplus", [-1, 0, 1])
def test_limits_are_not_in_step_with_labels_that_take_turns(limit: int, surplus: int, tmp_path: Path) -> None:
    """Would catch: every second row of data with two labels in turn, which is one label."""
    held = write_json(tmp_path / "eval.jsonl", reviews(2 * limit + surplus))
    config = json_config(
        tmp_path, reviews(2 * limit + surplus), eval=held, max_train_samples=limit, max_eval_samples=limit
    )
    made = prepare.prepare(config, TOKENIZER, CLASSES)
    for samples in (made.train, made.eval):
        assert len(samples) == limit and 0.2 * limit < sum(samples["label"]) < 0.8 * limit


def test_language_model_blocks_are_full_and_the_rest_is_counted(tmp_path: Path) -> None:
    # More than one batch of `map`, the first without a whole block.
    texts = [""] * 1000 + [f"document {i} " * (1 + i % 3) for i in range(1500)]
    held = write_json(tmp_path / "eval.jsonl", [{"text": "x" * 100}])
    made = prepare.prepare(json_config(tmp_path, [{"text": text} for text in texts], eval=held), TOKENIZER, LM)
    stream = [token for text in filter(None, texts) for token in [*text.encode(), TOKENIZER.eos_token_id]]
    flat = [token for block in made.train["input_ids"] for token in block]
    assert flat == stream[: len(flat)]
    assert made.info["train_tokens"] == len(flat) and {len(block) for block in made.train["input_ids"]} == {16}
    assert made.info["train_tokens_left_over"] == len(stream) - len(flat) < 16
    assert (made.num_labels, made.label_names) == (None, None)


@pytest.mark.parametrize("source", ["csv", "parquet", "text"])
def test_other_files_and_globs(tmp_path: Path, source: str) -> None:
    import pandas

    for name in ("b", "a"):
        path = tmp_path / f"{name}.{source}"
        texts = [f"{name} {i}" for i in range(10)]
        if source == "text":
            path.write_text("\n".join(texts), encoding="utf-8-sig")  # a mark before the text, as Windows writes it
        else:
            frame = pandas.DataFrame({"text": texts, "label": [i % 2 for i in range(10)]})
            frame.to_csv(path, index=False) if source == "csv" else frame.to_parquet(path)
    cfg = json_config(tmp_path).changed(source=source, train=[str(tmp_path / f"?.{source}")])
    rows = sources.load(cfg, "train", 0, tmp_path / "raw")
    assert rows["text"][:] == [f"{name} {i}" for name in ("a", "b") for i in range(10)]
    made = prepare.prepare(cfg, TOKENIZER, LM if source == "text" else CLASSES)
    assert made.info["train_rows"] + made.info["eval_rows"] == 20


def test_a_text_file_can_be_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree")
    for sample_by, expected in [("line", 4), ("paragraph", 2), ("document", 1)]:
        cfg = DataConfig(source="text", train=str(tmp_path / "*.txt"), max_length=4).changed(sample_by=sample_by)
        assert len(sources.load(cfg, "train", 0, tmp_path / sample_by)) == expected


def test_generated_text_is_a_function_of_the_seed_and_easy_to_learn(tmp_path: Path) -> None:
    cfg = GeneratedConfig(num_documents=200)
    one, two, other = (list(generate(cfg, seed)) for seed in (0, 0, 1))
    assert one == two != other
    assert Counter(row["label"] for row in one) == {0: 100, 1: 100}
    words = [word for row in one for word in row["text"].lower().replace(".", "").split()]
    assert len(set(words)) == 64
    followers = {word: Counter(b for a, b in zip(words, words[1:], strict=False) if a == word) for word in set(words)}
    foreseen = sum(sum(count for _, count in counts.most_common(6)) for counts in followers.values())
    assert foreseen > 0.6 * len(words)  # six words of 64 by chance: 0.1
    made = prepare.prepare(DataConfig(source="generated", max_length=32, cache_dir=str(tmp_path)), TOKENIZER, LM)
    assert made.info["train_samples"] > 500
    assert not prepare.prepare(
        DataConfig(source="generated", max_length=32, cache_dir=str(tmp_path)), TOKENIZER, LM
    ).info["built"]


@pytest.mark.parametrize(
    "labels, names, numbers",
    [
        (["b", "a", "c"], ["a", "b", "c"], [1, 0, 2]),
        ([0, 2, 1], ["0", "1", "2"], [0, 2, 1]),
        ([True, False, True], ["0", "1"], [1, 0, 1]),
    ],
)
def test_labels_become_numbers(tmp_path: Path, labels: list[Any], names: list[str], numbers: list[int]) -> None:
    rows = [{"text": f"text {i}", "label": label} for i, label in enumerate(labels * 5)]
    held = write_json(tmp_path / "eval.jsonl", rows)
    made = prepare.prepare(json_config(tmp_path, rows, eval=held), TOKENIZER, CLASSES)
    assert made.label_names == names
    assert made.train["label"][:3] == numbers


@pytest.mark.parametrize("train, held", [("csv", "csv"), ("json", "json"), ("names", "swapped"), ("words", "swapped"),
                                         ("views", "swapped"), ("names", "json")])  # fmt: skip
def test_labels_of_evaluation_are_those_of_training_whatever_their_type(tmp_path: Path, train: str, held: str) -> None:
    """Would catch: a label of evaluation taken for an index, where the classes of training are words."""
    stars = ["1", "2", "3"]
    words = {"csv": ["1", "2", "none"], "json": stars}.get(train, stars if held == "json" else ["neg", "pos"])
    seen = words if held == "swapped" else ["1", "2"]  # csv reads these as numbers, as `json` writes them

    def write(name: str, kind: str, labels: list[str]) -> str:
        path, texts = str(tmp_path / name), [f"{name} {i}" for i in range(len(labels))]
        if kind == "csv":
            lines = [f"{text},{label}\n" for text, label in zip(texts, labels, strict=True)]
            Path(path).write_text("text,label\n" + "".join(lines))
        elif kind == "json" and train == "names":  # in parquet, as the training data is
            Dataset.from_dict({"text": texts, "label": list(map(int, labels))}).to_parquet(path)
        elif kind == "json":
            values = [int(label) if name == "held" else label for label in labels]
            write_json(Path(path), [{"text": t, "label": v} for t, v in zip(texts, values, strict=True)])
        else:
            rows = Dataset.from_dict({"text": texts, "label": labels})
            if kind == "views":  # Arrow's newest type of text
                views = {key: pa.array(rows[key][:], pa.string_view()) for key in rows.column_names}
                parquet.write_table(pa.table(views), path)
                return path
            order = {"names": words, "swapped": words[::-1]}.get(kind)
            (rows.cast_column("label", ClassLabel(names=order)) if order else rows).to_parquet(path)
        return path

    files = write("train", train, words * 4), write("held", held, seen)
    source = train if train in ("csv", "json") else "parquet"
    cfg = DataConfig(source=source, max_length=16, cache_dir=str(tmp_path / "cache"), train=files[0], eval=files[1])
    made = prepare.prepare(cfg.changed(calibration=files[1]), TOKENIZER, CLASSES)
    assert made.label_names == words
    assert [words[number] for number in made.train["label"]] == words * 4
    assert [words[number] for number in made.eval["label"]] == seen
    assert made.calibration is not None and [words[number] for number in made.calibration["label"]] == seen
    without = prepare.prepare(cfg, TOKENIZER, CLASSES)  # a teacher's cache goes by the training data alone
    assert not without.info["built"] and without.origin == made.origin and without.calibration is None
    write("held", held, seen[::-1])
    changed = prepare.prepare(cfg.changed(eval=files[0], calibration=files[1]), TOKENIZER, CLASSES)
    assert len({each.calibration_key for each in (made, without, changed)}) == 3, "a run that goes on must notice"


def test_a_regression_learns_the_numbers_that_classes_are_called(tmp_path: Path) -> None:
    """Fails if the indices of a column of classes are learned in silence."""
    task = base.build({"name": "regression"})

    def prepared(names: list[str]) -> prepare.PreparedData:
        texts = [f"t {i}" for i in range(8)]
        rows = Dataset.from_dict({"text": texts, "label": [0, 1, 2, 2] * 2})
        rows.cast_column("label", ClassLabel(names=names)).to_parquet(tmp_path / "rows.parquet")
        file = str(tmp_path / "rows.parquet")
        cfg = DataConfig(source="parquet", max_length=16, cache_dir=str(tmp_path / "cache"), train=file, eval=file)
        return prepare.prepare(cfg.changed(calibration=file), TOKENIZER, task)

    made = prepared(["5", "2.5", "-1"])
    for samples in (made.train, made.eval, made.calibration):
        assert samples is not None and samples["label"][:4] == [5.0, 2.5, -1.0, -1.0]
    with pytest.raises(ValueError, match="labels of data.train are classes .'good', 'fair', 'bad'.*no numbers: name"):
        prepared(["good", "fair", "bad"])


# --- one sentence for what is wrong


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"text_column": "txt"}, "data.text_column='txt' is not in data.train: the columns are text, label"),
        ({"label_column": "stars"}, "data.label_column='stars' is not in data.train: the columns are text, label"),
        ({"text_column": "txt"}, "the columns are text, label. Give data.text_column=text.$"),
        ({"text_column": "txt", "label_column": "stars"}, "the columns are text, label. Give data.text_column=NAME.$"),
        ({"text_pair_column": "other"}, "data.text_pair_column='other' is not in"),
        ({"train": "train"}, r"data.train is not given: data.source=json needs data.train=FILE"),
        ({"train": "nowhere/*.json"}, r"data.train: no file matches 'nowhere/\*.json'"),
        ({"eval": "nowhere.json"}, "data.eval: no file matches"),
        ({"calibration": "nowhere.json"}, "data.calibration: no file matches"),
        ({"calibration": []}, r"data.calibration=\[\] must be a split, a path"),
        ({"source": "generated", "train": "train", "calibration": "x"}, "data.calibration is 'x', but with"),
        ({"eval_fraction": 0.0}, "eval_fraction is 0.0, but must be above 0"),
        ({"subset": "en"}, "data.subset is 'en', but with data.source=json"),
        ({"sample_by": "document"}, "data.sample_by is 'document', but with data.source=json"),
        ({"generated": GeneratedConfig(num_words=3)}, "data.generated is set, but with data.source=json"),
        ({"train": [__file__, f"{__file__[:-2]}p*"]}, r"names .*test_data.py twice, so its rows would count twice"),
        ({"max_length": 0}, "max_length is 0, but must be at least 1"),
        ({"source": "csv", "train": __file__}, r"test_data.py, line \d+: \d value"),
        ({"source": "parquet", "train": __file__}, "cannot be read as parquet"),
        ({"source": "./nowhere"}, "no folder data.source='./nowhere'"),
        ({"source": "generated"}, "with data.source=generated"),
    ],
)  # fmt: skip
def test_wrong_settings_are_one_sentence(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        prepare.prepare(json_config(tmp_path).changed(**fields), TOKENIZER, CLASSES)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "source, end, message",
    [
        ("json", "csv", r"cannot be read as json: .* \(its name ends in .csv: set data.source=csv\)$"),
        ("csv", "parquet", r"\(its name ends in .parquet: set data.source=parquet\)$"),
        ("csv", "jsonl", r"\(its name ends in .jsonl: set data.source=json\)$"),
    ],
)
def test_a_name_that_ends_otherwise_is_said(tmp_path: Path, source: str, end: str, message: str) -> None:
    path = tmp_path / f"rows.{end}"
    path.write_text("text,label\na,1,2\n")
    with pytest.raises(ValueError, match=message):
        prepare.prepare(json_config(tmp_path).changed(source=source, train=str(path)), TOKENIZER, CLASSES)


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "has no rows"),
        ([{"text": "a", "label": 1}, {"text": "b", "label": 2}], r"labels in the training data are 1, 2, but must be"),
        ([{"text": "a", "label": 0.5}, {"text": "b", "label": 1.0}], "labels in the training data are 0.5, 1.0, but"),
        ([{"text": "a", "label": None}, {"text": "b", "label": 1}], "'label' is empty in row 1 of data.train"),
        ([{"text": "a", "label": 0}, {"text": None, "label": 1}], "'text' is empty in row 2 of data.train"),
        (
            [{"text": "a", "label": "x"}, {"text": "b", "label": 1}],
            "label_column='label' holds values of several types",
        ),
        ([{"text": "a", "label": 0}, {"text": 2, "label": 1}], "text_column='text' holds values of several types"),
        ([{"text": 1, "label": 0}, {"text": 2, "label": 1}], "'text' holds .*int64.*, not text"),
        ([{"text": "", "label": 0}, {"text": "b", "label": 1}], "A text has no tokens"),
        ([{"text": "a", "label": 0}, {"text": "a", "label": 1}], "All 2 rows of data.train are equal"),
    ],
)
def test_wrong_rows_are_one_sentence(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare.prepare(json_config(tmp_path, rows), TOKENIZER, CLASSES)
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_labels_that_training_does_not_have_and_too_many_are_errors(tmp_path: Path) -> None:
    held = write_json(tmp_path / "eval.jsonl", [{"text": "x", "label": "odd"}])
    with pytest.raises(ValueError, match="label 'odd' is not one of the training data's .'neg', 'pos'.: leave such"):
        prepare.prepare(json_config(tmp_path, eval=held), TOKENIZER, CLASSES)
    rows = [{"text": "ham", "label": f"What is your record for {i} of the games that we saw?"} for i in range(12)]
    held = write_json(
        tmp_path / "eval.jsonl", [{"text": "ham", "label": "Go until jurong point crazy.. Available only"}]
    )
    with pytest.raises(ValueError, match=r"label 'Go until .*\.\.\.' is .* is data.label_column right") as error:
        prepare.prepare(json_config(tmp_path, rows, eval=held), TOKENIZER, CLASSES)
    assert "we saw" not in str(error.value) and "only" not in str(error.value)
    one = base.build({"name": "classification", "num_labels": 1})
    with pytest.raises(ValueError, match="task.num_labels=1, but the training data has 2: 'neg', 'pos'"):
        prepare.prepare(json_config(tmp_path), TOKENIZER, one)
    more = base.build({"name": "classification", "num_labels": 4})
    assert prepare.prepare(json_config(tmp_path), TOKENIZER, more).num_labels == 4
    digits = [{"text": f"text {i}", "label": str(2 + i % 2)} for i in range(8)]
    named = prepare.prepare(json_config(tmp_path, digits), TOKENIZER, more)
    assert named.label_names == ["2", "3", "4", "5"] and set(named.train["label"]) | set(named.eval["label"]) == {0, 1}


def test_whole_numbers_that_do_not_count_from_0_are_names(tmp_path: Path) -> None:
    """Stars. Would catch: stars taken for indices (off by one), or sorted as words (1, 10, 2)."""
    stars = [10, 2, -1, 10, 2, -1, 1, 1]
    rows = [{"text": f"text {i}", "label": label} for i, label in enumerate(stars)]
    held = write_json(tmp_path / "eval.jsonl", [{"text": "x", "label": 2}, {"text": "y", "label": 10}])
    made = prepare.prepare(json_config(tmp_path, rows, eval=held), TOKENIZER, CLASSES)
    assert made.label_names == ["-1", "1", "2", "10"]
    assert made.train["label"] == [3, 2, 0, 3, 2, 0, 1, 1] and made.eval["label"] == [2, 3]
    other = write_json(tmp_path / "other.jsonl", [{"text": "x", "label": 3}])
    with pytest.raises(ValueError, match="label '3' is not one of the training data's .'-1', '1', '10', '2'."):
        prepare.prepare(json_config(tmp_path, rows, eval=other), TOKENIZER, CLASSES)
    five = base.build({"name": "classification", "num_labels": 5})  # which is the fifth?
    with pytest.raises(ValueError, match="are -1, 1, 10, 2, but must be .* set task.num_labels=null"):
        prepare.prepare(json_config(tmp_path, rows), TOKENIZER, five)


def test_text_too_short_for_a_block_and_text_of_another_encoding_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no sample of data.max_length=4096: 436 tokens in all, too few"):
        prepare.prepare(json_config(tmp_path, max_length=4096), TOKENIZER, LM)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match="has no rows"):
        prepare.prepare(json_config(tmp_path).changed(source="text", train=str(tmp_path / "empty.txt")), TOKENIZER, LM)
    (tmp_path / "latin.txt").write_text("".join(f"{i} caf\xe9\n" for i in range(50)), encoding="latin-1")
    latin = json_config(tmp_path).changed(source="text", train=str(tmp_path / "latin.txt"))
    with pytest.raises(ValueError, match="latin.txt is not utf-8: set data.encoding, as data.encoding=latin-1"):
        prepare.prepare(latin, TOKENIZER, LM)
    assert prepare.prepare(latin.changed(encoding="latin-1"), TOKENIZER, LM).info["built"]


def test_names_with_brackets_are_read_as_they_are(tmp_path: Path) -> None:
    """`datasets` takes every name for a glob: feb[v2] would read febv, or nothing."""
    for name in ("jan", "feb[v2]", "febv"):
        write_json(tmp_path / f"{name}.jsonl", [{"text": name}])
    for given, rows in (("*.jsonl", ["feb[v2]", "febv", "jan"]), ("feb[v2].jsonl", ["feb[v2]"])):
        cfg = DataConfig(source="json", train=str(tmp_path / given))
        assert sources.load(cfg, "train", 0, tmp_path / "staging")["text"] == rows


def test_two_stars_are_all_folders(tmp_path: Path) -> None:
    for name in ("0", "x/1", "x/y/2"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_json(tmp_path / f"{name}.jsonl", [{"text": name}])
    found = sources.files(DataConfig(source="json", train=f"{tmp_path}/**/*.jsonl"), "train")
    assert [Path(each).stem for each in found] == ["0", "1", "2"]
