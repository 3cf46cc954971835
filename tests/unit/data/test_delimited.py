"""CSV as files in the world have it. Would catch: values in another column than their header says, or another value."""

from __future__ import annotations

import csv
import gzip
import random
import re
import zipfile
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pat.data import prepare, sources
from pat.models import tokenizers
from pat.prompts import logs
from pat.schema import DataConfig
from pat.tasks import base, formats

TOKENIZER = tokenizers.byte_tokenizer()
CLASSES = base.build({"name": "classification"})


def config(tmp_path: Path, content: str | bytes, **fields: Any) -> DataConfig:
    path = tmp_path / "rows.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    values: dict[str, Any] = {
        "train": str(path),
        "max_length": 16,
        "cache_dir": str(tmp_path / "cache"),
        "eval_fraction": 0.25,
    }
    given: dict[str, Any] = {"source": "csv"} | values | fields
    return DataConfig(**given)


def read(tmp_path: Path, content: str | bytes, **fields: Any) -> dict[str, list[Any]]:
    return sources.load(config(tmp_path, content, **fields), "train", 0, tmp_path / "raw")[:]


def refused(tmp_path: Path, content: str | bytes, **fields: Any) -> str:
    with pytest.raises(ValueError) as error:
        prepare.prepare(config(tmp_path, content, **fields), TOKENIZER, CLASSES)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").rglob("*.part"))
    return str(error.value)


@pytest.mark.parametrize("seed", range(8))
def test_what_was_written_is_read(tmp_path: Path, seed: int) -> None:
    """Any text in any column, as Python's writer puts it down."""
    rng = random.Random(seed)
    words = [
        "NA",
        "None",
        "null",
        "nan",
        "N/A",
        "",
        "1",
        "007",
        "1e3",
        'a "b"',
        "x,y",
        "a\nb",
        "a\r\nb",
        " sp ",
        "ä€😀",
        ";",
    ]
    names = ["text", "other", "label"][: rng.randint(1, 3)]
    rows = [[" ".join(rng.choices(words, k=rng.randint(1, 3))) or "?" for _ in names] for _ in range(50)]
    delimiter = rng.choice(",;|\t")
    path = tmp_path / "rows.csv"
    with open(path, "w", newline="", encoding=(encoding := rng.choice(["utf-8", "utf-8-sig", "utf-16"]))) as file:
        csv.writer(file, delimiter=delimiter, lineterminator=rng.choice(["\n", "\r\n"])).writerows([names, *rows])
    given: dict[str, Any] = {"delimiter": delimiter, "encoding": "utf-8" if encoding == "utf-8-sig" else encoding}
    found = read(tmp_path, path.read_bytes(), **given)
    assert found == {name: [row[i] for row in rows] for i, name in enumerate(names)}


def test_words_that_look_like_nothing_are_text_and_labels(tmp_path: Path) -> None:
    words = ["NA", "None", "null", "nan", "N/A", "NULL", "n/a"]
    lines = "".join(f"{word},{word}\n" for word in words * 2)
    assert read(tmp_path, f"text,label\n{lines}") == {"text": words * 2, "label": words * 2}
    held = tmp_path / "held.csv"
    held.write_text("text,label\nx,NA\n")
    made = prepare.prepare(config(tmp_path, f"text,label\n{lines}", eval=str(held)), TOKENIZER, CLASSES)
    assert made.label_names == sorted(words)


def test_only_labels_are_numbers_and_only_where_all_are(tmp_path: Path) -> None:
    assert read(tmp_path, "text,label\n1,0\n2,1\n") == {"text": ["1", "2"], "label": [0, 1]}
    assert read(tmp_path, "text,label\n1,0.5\n2,-1e3\n") == {"text": ["1", "2"], "label": [0.5, -1000.0]}
    assert read(tmp_path, "text,label\na,007\nb,1\n")["label"] == ["007", "1"]
    assert read(tmp_path, "text,label\na,nan\nb,1.5\n")["label"] == ["nan", "1.5"]
    assert read(tmp_path, "text,stars\na,3\nb,1\n", label_column="stars")["stars"] == [3, 1]


@pytest.mark.parametrize(
    "content, words",
    [
        ("text,label\na,pos\nb,neg,3\nc,pos\n", "rows.csv, line 3: 3 values, but the header has 2 columns"),
        ("text,label\n1,a,pos\n2,b,neg\n", "rows.csv, line 2: 3 values, but the header has 2 columns"),
        ("text,label\na,pos\nb\n", "rows.csv, line 3: 1 value, but the header has 2 columns"),
        ('text,label\n"a\nb",pos\n\nc, d,neg\n', "rows.csv, line 5: 3 values, but the header has 2 columns"),
        ('text,label\na,pos\n"b,neg\nc,pos\n', "rows.csv, line 3: unexpected end of data"),
        ('text,label\na,pos\n"b" or c,neg\n', "rows.csv, line 3: ',' expected after '\"'"),
        ("text,label\na,pos\nb,neg,\n", "data.delimiter"),
        ('text,label\na,pos\n"b" or c,neg\n', "data.quote_char=null"),
        ("text,text,label\na,b,pos\n", "rows.csv has two columns 'text'"),
        (",unnamed_1,text,label\n1,2,a,pos\n", "a column without a name and one that is called 'unnamed_1'"),
        ('{"text": "a, b", "label": 1}\n', "rows.csv holds JSON, not a header with columns: set data.source=json"),
        ("text,label\na,pos\nb,\nc,neg\n", "rows.csv, line 3: remove such rows"),
        ("text,label\na,pos\n\n\"b\n\",neg\n  ,neg\n", "rows.csv, line 6: A text has no tokens"),
        ("text,label\na,pos\nb,1\n", None),
        ("\n\n", "has no rows"),
        ("text,label\n", "has no rows"),
        ("text;label\na;pos\n", "data.text_column='text' is not in data.train: the columns are text;label"),
        ("speech,label\na,pos\n", "the columns are speech, label. Give data.text_column=speech. The first line is"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, content: str, words: str | None) -> None:
    if words is None:
        assert read(tmp_path, content)["label"] == ["pos", "1"]
    else:
        assert words in refused(tmp_path, content)


def test_encodings_and_quotes_are_keys(tmp_path: Path) -> None:
    latin = "text,label\nplain,pos\ncafé,neg\n".encode("latin-1")
    message = refused(tmp_path, latin)
    assert "rows.csv, line 3: not utf-8" in message and "data.encoding=latin-1" in message
    assert read(tmp_path, latin, encoding="latin-1")["text"] == ["plain", "café"]
    assert read(tmp_path, 'text\tlabel\n"a\t1\nb"\t0\n', delimiter="tab", quote_char=None)["text"] == ['"a', 'b"']
    assert read(tmp_path, "text,label\n'a,b',1\n", quote_char="'")["text"] == ["a,b"]
    for fields, words in [
        ({"delimiter": ",,"}, "data.delimiter=',,' must be one character"),
        ({"delimiter": '"'}, "must differ"),
        ({"quote_char": "ab"}, "data.quote_char='ab' must be one character"),
        ({"encoding": "latin-17"}, "data.encoding='latin-17' is not"),
        ({"source": "json", "delimiter": ";"}, "data.delimiter is ';', but with data.source=json"),
        ({"source": "parquet", "encoding": "utf-16"}, "data.encoding is 'utf-16', but with data.source=parquet"),
    ]:
        assert words in refused(tmp_path, "text,label\na,1\n", **fields)


def test_quotation_marks_that_are_only_text_swallow_no_rows(tmp_path: Path) -> None:
    """Fails if a sentence that begins with one, and a later line that ends with one, become one sample in silence."""
    lines = ["text\tlabel", "plain\t1", '"I never said that, she began.\t1', 'You misheard me."\t0']
    content = "\n".join(lines) + "\n"
    message = refused(tmp_path, content, delimiter="tab")
    assert "line 3: between two quotation marks stand lines that are rows" in message and "quote_char=null" in message
    assert len(read(tmp_path, content, delimiter="tab", quote_char=None)["text"]) == 3
    for quoted in ("one\nvalue", "a\tvalue", "of lines\nand\tmore\ttabs"):
        assert read(tmp_path, f'text\tlabel\n"{quoted}"\t1\nplain\t0\n', delimiter="tab")["text"][0] == quoted


def test_a_stray_quotation_mark_between_commas_swallows_no_rows(tmp_path: Path) -> None:
    """Fails if rows become part of one text in silence; a text of several lines, with commas in them, is one."""
    lines = ["text,label", "plain,pos", '"she began,neg', "and went on,pos", 'then stopped",neg', "so,pos"]
    for end in ("\n", "\r\n"):
        message = refused(tmp_path, end.join(lines) + end)
        assert "rows.csv, line 3: between two quotation marks stand lines that are rows" in message
        assert len(read(tmp_path, end.join(lines) + end, quote_char=None)["text"]) == 5
    for quoted in ("Dear Sir,\nthank you", "one, two\nthree, pos\nfour", "one,neg\ntwo,pos\n"):
        assert read(tmp_path, f'text,label\n"{quoted}",pos\nplain,neg\n')["text"][0] == quoted
    assert read(tmp_path, 'label,text\npos,"one\nneg,two"\nneg,x\n', label_column="none")["text"][0] == "one\nneg,two"
    assert "line 2: between" in refused(tmp_path, 'label,text\npos,"one\nneg,two"\nneg,x\n')


@pytest.mark.parametrize("mark, key", [("\t", "data.delimiter=tab"), (";", """'data.delimiter=";"'""")])
def test_another_delimiter_is_named(tmp_path: Path, mark: str, key: str) -> None:
    message = refused(tmp_path, f"text{mark}label\na{mark}1\nb{mark}0\n")
    assert message.endswith(f"set {key}.") and "data.text_column='text' is not in" in message
    message = refused(tmp_path, f"text{mark}label\na, b{mark}1\nb{mark}0\n")
    assert message.endswith(f"set {key}.") and "line 2: 2 values" in message


def test_tabs_by_the_name_of_a_file(tmp_path: Path) -> None:
    """Fails if one of train.csv and test.tsv needs a key that the other does not bear, or both are one cache entry."""
    tabs, commas = "text\tlabel\na, b\t1\nc\t0\n", "text,label\na,1\nc,0\n"
    (tmp_path / "test.tsv").write_text(tabs)
    (tmp_path / "test.tsv.gz").write_bytes(gzip.compress(tabs.encode()))
    for held in ("test.tsv", "test.tsv.gz"):
        cfg = config(tmp_path, commas, eval=str(tmp_path / held))
        rows = [sources.load(cfg, split, 0, tmp_path / f"raw-{held}")["text"][:] for split in ("train", "eval")]
        assert rows == [["a", "c"], ["a, b", "c"]]
    (tmp_path / "same.csv").write_text(tabs)
    digests = {
        sources.digest(config(tmp_path, commas, train=str(tmp_path / name)), "train", 0, tmp_path / "memory")
        for name in ("test.tsv", "same.csv")
    }
    assert len(digests) == 2
    assert read(tmp_path, commas, train=str(tmp_path / "test.tsv"), delimiter=";") == {
        "text\tlabel": ["a, b\t1", "c\t0"]
    }
    (tmp_path / "test.tsv").write_text(commas)
    assert "a name that ends in .csv" in refused(tmp_path, commas, train=str(tmp_path / "test.tsv"))


@pytest.mark.parametrize(("mark", "key"), [(",", ","), ("\t", "tab")])
def test_a_file_without_a_header_is_told_to_have_one(tmp_path: Path, mark: str, key: str) -> None:
    text = "Go until jurong point crazy.. Available only in bugis n great world la e buffet"
    message = refused(tmp_path, f"ham{mark}{text}\nspam{mark}Free entry\n", delimiter=key)
    assert "the columns are ham, Go until jurong point" in message and "bugis" not in message
    example = "text,label" if mark == "," else "text<tab>label"
    assert message.endswith(f"put a line with the names of the columns first, such as {example}.")


def test_white_space_in_a_header_can_be_seen(tmp_path: Path) -> None:
    """Fails if a sentence says that `label` is missing, and lists ` label` so that it looks the same."""
    seen = "'text', ' label' (white space is a part of these names: take it out)"
    assert f"the columns are {seen}. The first line is" in refused(tmp_path, "text, label\na,1\nb,0\n")
    path = tmp_path / "logs.csv"
    path.write_text("text, label\na,1\n")
    with pytest.raises(ValueError, match=re.escape(f"there are {seen}. The first line")):
        logs.sample(path, logs.Columns("text", label="label"), 1)
    with pytest.raises(ValueError, match=re.escape("the columns 'prompt', ' completion' (white space")):
        formats.columns_in(["prompt", " completion"], "text")


def test_an_empty_completion_is_missing_as_in_json(tmp_path: Path) -> None:
    """Fails if the model learns to answer nothing where a value is missing."""
    rows = "prompt,completion\n" + "".join(f"Question {i}?,{'' if i == 2 else 'yes'}\n" for i in range(8))
    with pytest.raises(ValueError, match="The column 'completion' is empty in .*rows.csv, line 4"):
        prepare.prepare(config(tmp_path, rows), TOKENIZER, base.build({"name": "chat"}))


def test_files_of_a_glob_must_have_the_same_columns_and_lines_are_counted_in_each(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"a {i},{i % 2}\n" for i in range(5)))
    (tmp_path / "b.csv").write_text("text,label\n" + "".join(f"b {i},{i % 2}\n" for i in range(3)) + "  ,1\n")
    cfg = DataConfig(
        source="csv", train=str(tmp_path / "?.csv"), max_length=16, cache_dir=str(tmp_path / "c"), eval_fraction=0.01
    )
    with pytest.raises(ValueError, match=r"b.csv, line 5: A text has no tokens"):
        prepare.prepare(cfg, TOKENIZER, CLASSES)
    (tmp_path / "b.csv").write_text("label,text\n1,b\n")
    with pytest.raises(ValueError, match=r"b.csv has the columns label, text, but .*a.csv has text, label"):
        prepare.prepare(cfg, TOKENIZER, CLASSES)


def test_compressed_files_and_long_fields(tmp_path: Path) -> None:
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress(f"text,label\n{'x' * 300_000},1\n".encode()))
    cfg = config(tmp_path, "", train=str(tmp_path / "rows.csv.gz"))
    assert len(sources.load(cfg, "train", 0, tmp_path / "raw")["text"][0]) == 300_000


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["a.csv"], None),
        (["a.csv", "__MACOSX/._a.csv"], None),
        (["a.csv", "b.csv"], "a.csv, b.csv"),
        (["folder/", "folder/a.csv"], "folder/, folder/a.csv"),
        ([], "it is empty"),
    ],
)
def test_a_zip_of_other_than_one_file_is_refused(names: list[str], found: str | None, tmp_path: Path) -> None:
    """Fails if all its files but the first are left out in silence."""
    path = tmp_path / "rows.csv.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "" if name.endswith("/") else "text,label\na,1\n")
    if found is None:
        assert read(tmp_path, "", train=str(path)) == {"text": ["a"], "label": [1]}
    else:
        assert refused(tmp_path, "", train=str(path)) == (
            f"{path} is not a zip of one file ({found}): unpack it, and give its files."
        )


@pytest.mark.parametrize("damage", ["torn", "changed", "other"])
@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zip"])
def test_a_file_that_cannot_be_unpacked_is_one_sentence(ending: str, damage: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.csv.{ending}"
    rows = "text,label\n" + "".join(f"row {random.Random(i).random()},{i % 2}\n" for i in range(2_000))
    packed: Any = fsspec.open(str(path), "wb", compression="infer")
    with packed as file:
        file.write(rows.encode())
    content = bytearray(path.read_bytes())
    if damage == "changed":
        content[-20:] = bytes(20)
    path.write_bytes(
        {"torn": content[: len(content) // 2], "changed": content, "other": b"<html>no such file</html>"}[damage]
    )
    said = refused(tmp_path, "", train=str(path))
    assert said.startswith(f"{path} cannot be unpacked (") and said.endswith("copy or download it again, or unpack it.")


def test_rows_are_named_for_json_too(tmp_path: Path) -> None:
    """After the split into train and eval, too: the number is that in the file."""
    rows = [f'{{"text": "text {i}", "label": "{"ab"[i % 2]}"}}\n' for i in range(40)]
    path = tmp_path / "rows.jsonl"
    for bad, row, words in [
        (7, '{"text": "", "label": "a"}\n', "row 8 of data.train: A text has no tokens"),
        (9, '{"text": null, "label": "a"}\n', "'text' is empty in row 10 of data.train"),
        (0, '{"text": "x", "label": ""}\n', "'label' is empty in row 1 of data.train"),
    ]:
        path.write_text("".join([*rows[:bad], row, *rows[bad:]]))
        cfg = config(tmp_path, "", source="json", train=str(path))
        with pytest.raises(ValueError, match=words):
            prepare.prepare(cfg, TOKENIZER, CLASSES)
    path.write_text("".join(rows))
    held = tmp_path / "held.jsonl"
    held.write_text("".join([*rows[:4], '{"text": "x", "label": "odd"}\n']))
    with pytest.raises(ValueError, match="row 5 of data.eval: The label 'odd' is not one of"):
        prepare.prepare(config(tmp_path, "", source="json", train=str(path), eval=str(held)), TOKENIZER, CLASSES)
