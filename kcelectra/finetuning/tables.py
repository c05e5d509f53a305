"""The rows of a table, a file or a data set of the Hub, in the columns that are asked for."""

import csv
import gzip
import hashlib
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, LargeList, List, load_dataset
from datasets.exceptions import DatasetsError

from kcelectra.corpus.comments import find_revision
from kcelectra.corpus.rows import UNREADABLE
from kcelectra.errors import InputError
from kcelectra.finetuning.sources import decode

MAX_TEXT_CHARS = 1_000_000  # assumption: what is longer is a damaged file
MAX_LISTED = 100  # names in a message
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
HUB_SPLITS = {"train": ("train",), "dev": ("validation", "dev"), "test": ("test",)}
UNUSABLE = re.compile("[\0\ud800-\udfff]")  # NUL, and halves of a character, which cannot be written
UNCLOSED = "look for a quotation mark that nothing closes, or one in a text that is not doubled"


class Row(NamedTuple):
    """What stands in the columns: texts, and labels, each text, a number, or a list of these."""

    where: str
    texts: tuple[str, ...]
    labels: list[Any]


class Table(NamedTuple):
    """All rows, and the sha256 of what was read.

    Args:
        rows: one or more.
        sha256: of the file, or of what the rows hold.
        names: of the classes by id, where a data set of the Hub has them; its rows then hold names.
    """

    rows: list[Row]
    sha256: str
    names: list[str] | None = None


@dataclass(frozen=True)
class Columns:
    """The columns that are asked for, by name.

    Args:
        texts: one, or the two of a pair.
        labels: one or more.

    Raises:
        InputError: there are too few or too many, or one twice.
    """

    texts: list[str]
    labels: list[str]

    def __post_init__(self) -> None:
        if not 1 <= len(self.texts) <= 2:
            raise InputError(
                f"{len(self.texts)} text columns, {list_names(self.texts)}; give one, or the two of a pair"
            )
        if not self.labels:
            raise InputError("no label column; give one, or several of 0 and 1")
        for column, times in Counter(self.all).items():
            if times > 1:
                raise InputError(f"the column {column!r} is given {times} times; give each once, as --text or --label")

    @property
    def all(self) -> list[str]:
        """Those of the texts, then those of the labels."""
        return [*self.texts, *self.labels]

    def find(self, header: list[str], where: str) -> list[int]:
        """Return where in a header they stand."""
        for column in self.all:
            if column not in header:
                raise InputError(
                    f"{where}: no column {column!r}{suggest(column, header)}; it has {list_names(header)}"
                )
            if header.count(column) > 1:
                raise InputError(f"{where}: {header.count(column)} columns are called {column!r}; rename all but one")
        return [header.index(column) for column in self.all]

    def check(self, values: Sequence[Any], where: str) -> Row:
        """Return what was read in them as a row, if each value is there and can be used."""
        texts, labels = values[: len(self.texts)], values[len(self.texts) :]
        for column, text in zip(self.texts, texts, strict=True):
            _check_value(text, f"{where}: {column!r}", (str,))
        for column, label in zip(self.labels, labels, strict=True):
            for part in as_list(label):
                _check_value(part, f"{where}: {column!r}", (str, bool, int, float))
        return Row(where, tuple(texts), list(labels))


def _check_value(value: Any, where: str, types: tuple[type, ...]) -> None:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise InputError(f"{where} is empty; fill it in or take the row out")
    if not isinstance(value, types):
        wanted = "text or a number" if int in types else "text"
        raise InputError(f"{where} is {value!r:.100}, not {wanted}; convert the column or give another")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where} is {value}, no finite number; mend it or take the row out")
    if isinstance(value, str) and len(value) > MAX_TEXT_CHARS:
        raise InputError(f"{where} has {len(value):,} characters, more than {MAX_TEXT_CHARS:,}; cut it, or {UNCLOSED}")
    if isinstance(value, str) and (unusable := UNUSABLE.search(value)):
        raise InputError(f"{where} holds {unusable[0]!r}, which is no character; take it out")


# files


def is_on_hub(source: str) -> bool:
    """Tell whether it is the id of a data set on the Hub: it looks like one, and no file is there or looked for."""
    return HUB_ID.fullmatch(source) is not None and not Path(source).exists() and _kind_of(source) not in _READERS


def _kind_of(source: str) -> str:
    return Path(source.lower().removesuffix(".gz")).suffix


def read_file(source: str, columns: Columns) -> Table:
    """Return the rows of a file `.csv`, `.tsv`, `.jsonl` (these also as `.gz`) or `.parquet`.

    A `.csv` whose header has tabs and no comma is one with tabs. In a `.tsv` quotation marks are text, as in NSMC.
    Nothing is left out: a row that cannot be used is an error.

    Raises:
        InputError: the file cannot be read, lacks a column, has no rows, or a row is not what it should be; the row
            is named.
    """
    known = f"{', '.join(_READERS)}, as .gz too"
    if not Path(source).is_file():
        raise InputError(
            f"there is no file {source}; give one ({known}), or the id of a data set on the Hub, OWNER/NAME"
        )
    if _kind_of(source) not in _READERS:
        raise InputError(
            f"{source}: unknown extension; use one of {known}: text with tabs is .tsv, and a spreadsheet can be saved "
            "as CSV UTF-8"
        )
    try:
        data = Path(source).read_bytes()
        content = gzip.decompress(data) if source.lower().endswith(".gz") else data
        if not content:
            raise InputError(f"{source} is empty; give a file with a header and rows")
        records = _READERS[_kind_of(source)](content, columns, source)
        rows = [columns.check(values, where) for where, values in records]
    except (*UNREADABLE, UnicodeDecodeError) as error:  # the latter of the names of Parquet columns
        raise InputError(f"cannot read {source}: {error}; it is damaged: copy or write it again") from error
    if not rows:
        raise InputError(f"{source} has a header and no rows; give a file with rows")
    return Table(rows, hashlib.sha256(data).hexdigest())


def _decode(content: bytes, source: str) -> str:
    text = decode(content, source)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{source}, line {line}: a NUL byte; the file is damaged, or UTF-16: write it again as UTF-8")
    if not text.strip():
        raise InputError(f"{source} is empty; give a file with a header and rows")
    return text.rstrip("\r\n")


def _read_csv(content: bytes, columns: Columns, source: str) -> Iterator[tuple[str, list[Any]]]:
    text = _decode(content, source)
    first = text.partition("\n")[0]
    delimiter, called = ("\t", "tabs") if "\t" in first and "," not in first else (",", "commas")
    hint = f"put a text with {called} or line ends into quotation marks, or {UNCLOSED}"
    records = csv.reader(io.StringIO(text, newline="\n"), delimiter=delimiter, strict=True)
    where = f"{source}, line 1"
    try:
        header = next(records)
        indices = columns.find(header, source)
        for number in count(1):
            where = f"{source}, line {records.line_num + 1} (row {number})"
            fields = next(records, None)
            if fields is None:
                return
            if not fields:
                raise InputError(f"{where}: an empty line; take it out, or put its text into quotation marks")
            yield where, _pick(fields, indices, header, where, hint)
    except csv.Error as error:
        raise InputError(f"{where}: {error}; {UNCLOSED}") from error


def _read_tsv(content: bytes, columns: Columns, source: str) -> Iterator[tuple[str, list[Any]]]:
    hint = "in a .tsv a line is a row and quotation marks are text: if this one quotes its fields, call it .csv"
    first, *lines = _decode(content, source).split("\n")
    header = first.removesuffix("\r").split("\t")
    indices = columns.find(header, source)
    for number, line in enumerate(lines, start=2):
        where = f"{source}, line {number}"
        values = _pick(line.removesuffix("\r").split("\t"), indices, header, where, hint)
        if any('"' in value for value in values[len(columns.texts) :]):
            raise InputError(f"{where}: a quotation mark in the label; {hint}")
        yield where, values


def _pick(fields: list[str], indices: list[int], header: list[str], where: str, hint: str) -> list[str]:
    if len(fields) != len(header):
        fields_here = "1 field" if len(fields) == 1 else f"{len(fields)} fields"
        raise InputError(f"{where}: {fields_here} where the header has {len(header)}; {hint}")
    return [fields[index] for index in indices]


def _read_jsonl(content: bytes, columns: Columns, source: str) -> Iterator[tuple[str, list[Any]]]:
    objects = []
    for number, line in enumerate(_decode(content, source).split("\n"), start=1):
        try:
            objects.append(json.loads(line, object_pairs_hook=_make_object))
        except (ValueError, RecursionError) as error:
            reason = str(error).partition(": line 1")[0]  # of this line
            raise InputError(f"{source}, line {number}: no JSON ({reason}); write one object a line") from error
        if not isinstance(objects[-1], dict):
            raise InputError(f"{source}, line {number}: {line:.100} is no object; write one, {{...}}, a line")
    columns.find(list(dict.fromkeys(key for values in objects for key in values)), source)
    for number, values in enumerate(objects, start=1):
        yield f"{source}, line {number}", [values.get(column) for column in columns.all]


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands twice")
    return values


def _read_parquet(content: bytes, columns: Columns, source: str) -> Iterator[tuple[str, list[Any]]]:
    with pq.ParquetFile(pa.BufferReader(content)) as file:
        columns.find(file.schema_arrow.names, source)
        table = file.read(columns=columns.all)
    for number, scalars in enumerate(zip(*map(table.column, columns.all), strict=True), start=1):
        try:
            yield f"{source}, row {number}", [scalar.as_py() for scalar in scalars]
        except UnicodeDecodeError as error:
            raise InputError(f"{source}, row {number}: {error}; write the file again") from error


_READERS: dict[str, Callable[[bytes, Columns, str], Iterator[tuple[str, list[Any]]]]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


# the Hub


def read_hub(
    source: str, columns: Columns, *, revision: str | None, given: Collection[str]
) -> tuple[dict[str, Table], str]:
    """Return the train, dev and test split of a data set of the Hub, as far as it has them, and its commit.

    Args:
        source: its id.
        columns: to read.
        revision: a branch, a tag or a commit; the main branch if None.
        given: splits not to read.

    Raises:
        InputError: it cannot be loaded, has no train split, lacks a column, or a row is not what it should be.
    """
    commit = find_revision(source, revision)
    try:
        loaded = load_dataset(source, revision=commit)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise InputError(f"cannot load {source}: {error}; download a file of it and give its path") from error
    if "train" not in loaded:
        raise InputError(
            f"{source} has no split 'train', but {list_names(loaded)}; download the files and give their paths"
        )
    tables = {}
    for split, names in HUB_SPLITS.items():
        found = next((name for name in names if name in loaded and split not in given), None)
        if found is not None:
            tables[split] = _read_dataset(loaded[found], columns, f"{source}, {found}")
    return tables, commit


def _read_dataset(dataset: Dataset, columns: Columns, where: str) -> Table:
    columns.find(dataset.column_names, where)
    values = dataset.select_columns(columns.all)[:]
    names, label = _find_class_names(dataset, columns), columns.labels[0]
    if names is not None:
        by_id = dict(enumerate(names))
        values[label] = [_to_names(value, by_id) for value in values[label]]
    if all(value is None for value in values[label]):
        raise InputError(f"{where}: no row has a {label!r}; give a file with labels for this split")
    rows = [
        columns.check(row, f"{where}, row {number}")
        for number, row in enumerate(zip(*map(values.get, columns.all), strict=True), start=1)
    ]
    contents = "".join(f"{json.dumps([row.texts, row.labels])}\n" for row in rows)
    return Table(rows, hashlib.sha256(contents.encode()).hexdigest(), names)


def _find_class_names(dataset: Dataset, columns: Columns) -> list[str] | None:
    feature = dataset.features[columns.labels[0]]
    if isinstance(feature, List | LargeList):
        feature = feature.feature
    return list(feature.names) if isinstance(feature, ClassLabel) and len(columns.labels) == 1 else None


def _to_names(value: Any, by_id: dict[int, str]) -> Any:
    if isinstance(value, list):
        return [_to_names(part, by_id) for part in value]
    return by_id.get(value)  # none for -1, which stands where labels are kept secret


def as_list(value: Any) -> list[Any]:
    """Return a list as it is, and of anything else one of it alone."""
    return value if isinstance(value, list) else [value]


# messages


def suggest(name: str, names: Collection[str]) -> str:
    """Return a question after the name that is most like one, or nothing."""
    nearest = get_close_matches(name, names, n=1)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""


def list_names(names: Collection[str]) -> str:
    """Return names in quotation marks, the first hundred."""
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return (", ".join(map(repr, [*names][:MAX_LISTED])) or "none at all") + more
