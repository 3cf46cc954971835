"""Files with a separator between values, as csv: rows exactly as they are written, or an error with file and line.

Nothing is guessed. The first line names the columns, no column is an index, and every value is text, so that `NA` and
`007` stay what they are; only a label column whose values all are numbers is read as numbers.
"""

from __future__ import annotations

import codecs
import csv
import lzma
import re
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
from datasets import Dataset
from fsspec.utils import infer_compression

from pat.common.text import column_names, header_is_first, two_of_a_name
from pat.schema import DataConfig

COMMA = DataConfig.model_fields["delimiter"].default
TABS = ("tab", "\\t")  # other ways to write a tab as data.delimiter: a shell has no easy one
BATCH = 10_000  # rows in memory at a time
_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")


class Place(NamedTuple):
    """Where a row begins; lines count from 1, the header's included."""

    path: str
    line: int

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}"


def check(cfg: DataConfig) -> None:
    """ValueError for an invalid delimiter, quotation mark or encoding."""
    delimiter = "\t" if cfg.delimiter in TABS else cfg.delimiter
    for key, given, value in (
        ("delimiter", cfg.delimiter, delimiter),
        ("quote_char", cfg.quote_char, cfg.quote_char),
    ):
        if value is not None and (len(value) != 1 or value in "\r\n"):
            raise ValueError(
                f"data.{key}={given!r} must be one character" + (", or tab." if key == "delimiter" else ".")
            )
    if cfg.quote_char == delimiter:
        raise ValueError(f"data.delimiter and data.quote_char are both {cfg.quote_char!r}, but must differ.")
    try:
        codecs.lookup(cfg.encoding)
    except LookupError:
        raise ValueError(
            f"data.encoding='{cfg.encoding}' is not an encoding: take utf-8, latin-1, cp1252, utf-16, ..."
        ) from None


def is_tsv(path: str, cfg: DataConfig) -> bool:
    """Whether tabs separate a file's values because of its name: .tsv, or .tsv.gz, and no data.delimiter is given."""
    name = Path(path).stem if infer_compression(path) else path
    return cfg.source == "csv" and cfg.delimiter == COMMA and name.lower().endswith(".tsv")


def marked(encoding: str) -> str:
    """The encoding, which for UTF-8 takes a byte order mark for what it is."""
    return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding


def load(paths: Sequence[str], cfg: DataConfig, target: Path) -> Dataset:
    """All rows of the files in order, memory-mapped from the file `target`. Raises ValueError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    columns, whole, numbers = _columns(paths, cfg), True, True
    schema = pa.schema([(name, pa.string()) for name in columns])
    label = columns.index(cfg.label_column) if cfg.label_column in columns else None
    stream, count, swallowed = records(paths, cfg), 0, Swallowed(cfg, label)
    with pa.OSFile(str(target), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        while placed := list(islice(stream, BATCH)):
            batch = [values for _, values in placed]
            count += len(batch)
            swallowed.look(placed)
            if label is not None:
                whole = whole and all(_WHOLE.fullmatch(values[label]) for values in batch)
                numbers = numbers and all(_NUMBER.fullmatch(values[label]) for values in batch)
            writer.write_batch(
                pa.record_batch([pa.array(values) for values in zip(*batch, strict=True)], schema=schema)
            )
    swallowed.refuse()
    if label is not None and numbers and count:
        target = _retyped(target, label, pa.int64() if whole else pa.float64())
    return Dataset.from_file(str(target))


def _retyped(source: Path, column: int, kind: pa.DataType) -> Path:
    """A copy of the file with one column of another type."""
    target = source.with_suffix(".typed")
    with pa.memory_map(str(source)) as file, pa.ipc.open_stream(file) as batches:
        schema = batches.schema.set(column, batches.schema.field(column).with_type(kind))
        with pa.OSFile(str(target), "wb") as out, pa.ipc.new_stream(out, schema) as writer:
            for batch in batches:
                writer.write_batch(batch.set_column(column, schema.field(column), batch.column(column).cast(kind)))
    return target


def place(paths: Sequence[str], cfg: DataConfig, row: int) -> Place:
    """Where row number `row` (from 0, over all files) stands: for an error, so the files are read again."""
    return next(islice(records(paths, cfg), row, None))[0]


def records(paths: Sequence[str], cfg: DataConfig) -> Iterator[tuple[Place, list[str]]]:
    """Every row of the files, with its place; as many values as the header has columns, or a ValueError."""
    for path in paths:
        rows, delimiter = _raw(path, cfg), _delimiter(path, cfg)
        _, header = next(rows, (None, []))
        for where, values in rows:
            if len(values) != len(header):
                found = f"{len(values)} value{'s' * (len(values) != 1)}"
                mark = "tab" if delimiter == "\t" else delimiter
                what_to_do = f": fix the line, quote values that contain data.delimiter={mark!r}, or name another one."
                raise ValueError(
                    f"{where}: {found}, but the header has {len(header)} column{'s' * (len(header) != 1)}"
                    + (f".{otherwise}" if (otherwise := separated_otherwise(header, path, cfg)) else what_to_do)
                )
            if delimiter == "\t" and next(_inside(values, delimiter), None):
                raise ValueError(
                    f"{where}: between two quotation marks stand lines that are rows by themselves, as where these "
                    "marks are only text: set data.quote_char=null."
                )
            yield where, values


def separated_otherwise(header: Sequence[str], path: str, cfg: DataConfig) -> str:
    """What to do where the whole header was taken for one name; empty where it was not."""
    if is_tsv(path, cfg) and len(header) == 1 and "," in header[0]:
        return " Its columns seem to be separated by commas, not tabs: give it a name that ends in .csv."
    keys = {"\t": "data.delimiter=tab"} | {mark: f"""'data.delimiter="{mark}"'""" for mark in ";|"}
    key = next((key for mark, key in keys.items() if len(header) == 1 and mark in header[0]), None)
    return f" Its columns seem to be separated otherwise: set {key}." if key else ""


def _inside(values: Sequence[str], delimiter: str) -> Iterator[list[list[str]]]:
    """Rows that a value between quotation marks may have swallowed: its lines, with what stands before and behind it,
    where all are rows of as many columns."""
    for at, value in enumerate(values):
        if "\n" in value and delimiter in value:
            first, *others, last = (line.removesuffix("\r").split(delimiter) for line in value.split("\n"))
            rows = [[*values[:at], *first], *others, [*last, *values[at + 1 :]]]
            if all(len(row) == len(values) for row in rows) and any(last):
                yield rows


class Swallowed:
    """Rows that a stray quotation mark has made one value of another.

    Between tabs that is clear at once. Texts of several lines have commas, too, so there every such line must end as a
    row does: in a label that other rows have.
    """

    def __init__(self, cfg: DataConfig, label: int | None) -> None:
        self.cfg, self.label = cfg, label
        self.labels: set[str] = set()
        self.suspects: list[tuple[Place, set[str]]] = []

    def look(self, placed: Sequence[tuple[Place, list[str]]]) -> None:
        if self.label is None:
            return
        if len(self.labels) < BATCH:  # else they are numbers, not classes
            self.labels.update(values[self.label] for _, values in placed)
        for where, values in placed:
            for rows in _inside(values, _delimiter(where.path, self.cfg)):
                self.suspects.append((where, {row[self.label] for row in rows}))

    def refuse(self) -> None:
        """Raises ValueError."""
        for where, labels in self.suspects:
            if labels <= self.labels:
                raise ValueError(
                    f"{where}: between two quotation marks stand lines that are rows by themselves, with labels of "
                    "other rows: take the marks away, or set data.quote_char=null where no value holds a delimiter. If "
                    "this is one text, give the rows as JSON."
                )


def _columns(paths: Sequence[str], cfg: DataConfig) -> list[str]:
    """The names in the header that all files must share; a column without a name gets one."""
    headers: list[list[str]] = []
    for path in paths:
        _, header = next(_raw(path, cfg), (None, []))
        if header and header[0].lstrip().startswith(('{"', "[{")):
            raise ValueError(f"{path} holds JSON, not a header with columns: set data.source=json.")
        if twice := two_of_a_name(header):
            raise ValueError(f"{path}{twice}")
        if headers and header != headers[0]:
            raise ValueError(
                f"{path} has the columns {column_names(header)}, but {paths[0]} has {column_names(headers[0])}: "
                f"files that are read together must have the same header.{header_is_first()}"
            )
        headers.append(header)
    names = [name or f"unnamed_{i}" for i, name in enumerate(headers[0], 1)]
    taken = next((i for i, name in enumerate(names) if name in names[:i]), None)
    if taken is not None:
        raise ValueError(f"{paths[0]} has a column without a name and one that is called '{names[taken]}': name both.")
    return names


def without(names: Sequence[str], header: Sequence[str], path: str, cfg: DataConfig) -> str:
    """What to do where a file has not the columns of these names, but those of `header`."""
    example = ("<tab>" if (mark := _delimiter(path, cfg)) == "\t" else mark).join(names)
    return separated_otherwise(header, path, cfg) or header_is_first(example)


def _raw(path: str, cfg: DataConfig) -> Iterator[tuple[Place, list[str]]]:
    """The records of a file, the header first, without empty lines. Raises ValueError."""
    try:
        if infer_compression(path) == "zip":
            _check_zip(path)
        yield from _parsed(path, cfg)
    except (EOFError, OSError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the file system's
            raise
        raise ValueError(f"{path} cannot be unpacked ({error}): copy or download it again, or unpack it.") from error


def _check_zip(path: str) -> None:
    """ValueError where it is not one file, for fsspec reads its first entry only; macOS adds notes of its own."""
    with zipfile.ZipFile(path) as archive:
        entries = [each for each in archive.filelist if not each.filename.startswith("__MACOSX/")]
    if len(entries) != 1 or entries[0].is_dir():
        names = ", ".join(each.filename for each in entries[:3]) + ", ..." * (len(entries) > 3)
        raise ValueError(f"{path} is not a zip of one file ({names or 'it is empty'}): unpack it, and give its files.")


def _parsed(path: str, cfg: DataConfig) -> Iterator[tuple[Place, list[str]]]:
    csv.field_size_limit(sys.maxsize)  # a document may be longer than the module's 128 KiB
    encoding = marked(cfg.encoding)
    quoting: dict[str, Any] = {"quotechar": cfg.quote_char} if cfg.quote_char else {"quoting": csv.QUOTE_NONE}
    with fsspec.open(path, "rt", encoding=encoding, newline="", compression="infer") as file:
        reader, line = csv.reader(file, delimiter=_delimiter(path, cfg), strict=True, **quoting), 1
        try:
            for values in reader:
                if values:
                    yield Place(path, line), values
                line = reader.line_num + 1
        except csv.Error as error:
            raise ValueError(
                f"{Place(path, line)}: {error}; a quotation mark inside a quoted value is written twice, and "
                "data.quote_char=null reads them as ordinary characters."
            ) from error
        except UnicodeError as error:
            raise ValueError(
                f"{_undecodable(path, cfg, line)}: not {cfg.encoding}: set data.encoding, as data.encoding=latin-1."
            ) from error


def _undecodable(path: str, cfg: DataConfig, line: int) -> Place:
    """The line that the encoding does not fit. The decoder works in blocks, so it failed some lines earlier."""
    with fsspec.open(path, "rb", compression="infer") as file:
        for number, content in enumerate(file, 1):
            try:
                content.decode(cfg.encoding)
            except UnicodeError:
                return Place(path, max(number, line))
    return Place(path, line)


def _delimiter(path: str, cfg: DataConfig) -> str:
    return "\t" if cfg.delimiter in TABS or is_tsv(path, cfg) else cfg.delimiter
