"""Read comments as a stream, from local files or the Hub, and lose no good one beside a bad one."""

import glob
import gzip
import json
import logging
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import load_dataset
from datasets.exceptions import DatasetNotFoundError

from kcelectra.errors import InputError

logger = logging.getLogger(__name__)

FORMATS = {".txt": "text", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet"}
OPTIONAL_COLUMNS = ("thread", "comment_id", "parent_id")
READ_BATCH_SIZE = 1000
MAX_NAMED_ROWS = 10  # bad rows that get a line each in the log; the others are counted
GLOB_CHARACTERS = "*?["
UNREADABLE = (OSError, EOFError, zlib.error, pa.ArrowInvalid)
UNDECODABLE = object()

#: A row: its columns, or the reason why it cannot be read.
Row = dict[str, Any] | str


@dataclass(frozen=True)
class Comment:
    """One comment as its source has it; `thread`, `comment_id` and `parent_id` are None where there is none."""

    text: str
    thread: str | None = None
    comment_id: str | None = None
    parent_id: str | None = None


@dataclass
class CommentReader:
    """Comments of a source, in its order.

    Args:
        dataset: a file, a glob, a directory (`.txt`, one comment a line; `.jsonl`, `.jsonl.gz`, `.txt.gz`,
            `.parquet`), or the id of a dataset on the Hub.
        split: of a Hub dataset.
        revision: of a Hub dataset.
        text_column: column that holds the comment.

    Attributes:
        counts: `comments` read, and rows dropped by reason (`invalid UTF-8`, `invalid JSON`, `no text`), in the
            current or last pass.
        has_parents: the source has a column `parent_id`; known once the first batch was read.

    Raises:
        InputError: nothing matches, a file cannot be read, or the column does not exist.
    """

    dataset: str
    split: str = "train"
    revision: str | None = None
    text_column: str = "text"
    counts: Counter[str] = field(default_factory=Counter, init=False)
    has_parents: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.files = find_files(self.dataset)
        for file in self.files:
            _check_file(file, self.text_column)

    def __iter__(self) -> Iterator[list[Comment]]:
        """Yield batches of comments, from the beginning."""
        self.counts.clear()
        self._has_column = False
        for source, rows in self._open_sources():
            batch = []
            for number, row in enumerate(rows, start=1):
                comment = self._accept(row, source, number)
                if comment is not None:
                    batch.append(comment)
                if len(batch) == READ_BATCH_SIZE:
                    self.counts["comments"] += len(batch)
                    yield batch
                    batch = []
            self.counts["comments"] += len(batch)
            yield batch

    def _open_sources(self) -> Iterator[tuple[str, Iterator[Row]]]:
        if not self.files:
            yield self.dataset, _read_from_hub(self)
        for file in self.files:
            yield file, _read_file(file, self.text_column)

    def _accept(self, row: Row, source: str, number: int) -> Comment | None:
        """Make a comment of a row, or count and name what is wrong with it."""
        if isinstance(row, str):
            self._drop(row, source, number)
            return None
        if not self._has_column and self.text_column not in row:
            raise InputError(_missing_column(source, self.text_column, row))
        self._has_column = True
        text = row.get(self.text_column)
        if not isinstance(text, str):
            self._drop("no text", source, number)
            return None
        self.has_parents |= "parent_id" in row
        return Comment(text, *(_as_text(row.get(key)) for key in OPTIONAL_COLUMNS))

    def _drop(self, reason: str, source: str, number: int) -> None:
        self.counts[reason] += 1
        if sum(self.counts.values()) - self.counts["comments"] <= MAX_NAMED_ROWS:
            logger.warning("%s, row %d: %s; the row is left out", source, number, reason)


def find_files(dataset: str) -> list[str]:
    """Return the local files that a path, a glob or a directory stands for, sorted; none for a Hub id.

    Raises:
        InputError: it looks like a path and nothing is there, or a file has an unknown extension.
    """
    if os.path.isdir(dataset):
        matches = [str(path) for path in Path(dataset).iterdir() if _format_of(str(path)) is not None]
    elif os.path.isfile(dataset):
        matches = [dataset]
    else:
        matches = [path for path in glob.glob(dataset, recursive=True) if os.path.isfile(path)]
    if not matches and _looks_local(dataset):
        raise InputError(
            f"no file matches {dataset!r}; give a file, a quoted glob, a directory, or a Hub id owner/name"
        )
    for path in matches:
        if _format_of(path) is None:
            raise InputError(
                f"{path}: unknown extension; use one of {', '.join(FORMATS)}, the text formats also as .gz"
            )
    return sorted(matches)


def _looks_local(dataset: str) -> bool:
    is_path = dataset.startswith((".", "/", "~")) or dataset.count("/") > 1 or "\\" in dataset
    is_glob = any(character in dataset for character in GLOB_CHARACTERS)
    return is_path or is_glob or _format_of(dataset) is not None or os.path.isdir(dataset)


def _format_of(path: str) -> str | None:
    return FORMATS.get(Path(path.removesuffix(".gz")).suffix)


def _check_file(file: str, text_column: str) -> None:
    """See at the start, and not after hours, that a file opens and a Parquet file has the column."""
    try:
        if _format_of(file) != "parquet":
            with _open_lines(file) as lines:
                lines.readline()
            return
        columns = pq.read_schema(file).names
    except UNREADABLE as error:
        raise InputError(f"cannot read {file}: {error}") from error
    if text_column not in columns:
        raise InputError(_missing_column(file, text_column, columns))


def _missing_column(source: str, column: str, columns: Iterable[str]) -> str:
    return f"{source} has no column {column!r}; it has {', '.join(map(repr, columns))}: give one as --text_column"


def _read_file(file: str, text_column: str) -> Iterator[Row]:
    """Yield the rows of a local file.

    Files are read here and not by `datasets`: measured with 5.2.0, one bad byte costs it the whole file, a `.gz` with
    Hangul cannot be read once bytes may be bad, and an empty Parquet shard ends the stream.
    """
    try:
        if _format_of(file) == "parquet":
            with pq.ParquetFile(file) as parquet:
                wanted = [name for name in (text_column, *OPTIONAL_COLUMNS) if name in parquet.schema_arrow.names]
                for batch in parquet.iter_batches(READ_BATCH_SIZE, columns=wanted):
                    yield from _rows_of(batch)
            return
        is_json = _format_of(file) == "json"
        with _open_lines(file) as lines:
            for line in lines:
                yield _parse_line(line, text_column, is_json=is_json)
    except UNREADABLE as error:
        raise InputError(f"cannot read {file}: {error}") from error


def _open_lines(file: str) -> BinaryIO:
    return cast(BinaryIO, gzip.open(file)) if file.endswith(".gz") else open(file, "rb")


def _parse_line(line: bytes, text_column: str, *, is_json: bool) -> Row:
    try:
        text = line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        return "invalid UTF-8"
    if not is_json:
        return {text_column: text}
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return "invalid JSON"
    return values if isinstance(values, dict) else "invalid JSON"


def _read_from_hub(reader: CommentReader) -> Iterator[Row]:
    try:
        stream = load_dataset(reader.dataset, split=reader.split, revision=reader.revision, streaming=True)
    except (DatasetNotFoundError, ValueError, OSError) as error:
        raise InputError(
            f"cannot open {reader.dataset!r}: {error}; give a local path, or a Hub dataset with "
            "its --dataset_split and --dataset_revision"
        ) from error
    try:
        for table in stream.with_format("arrow").iter(batch_size=READ_BATCH_SIZE):
            wanted = [name for name in (reader.text_column, *OPTIONAL_COLUMNS) if name in table.column_names]
            yield from _rows_of(table.select(wanted) if reader.text_column in wanted else table)
    except UNREADABLE as error:
        raise InputError(f"cannot read {reader.dataset!r}: {error}; download its files and give their path") from error


def _rows_of(table: pa.Table | pa.RecordBatch) -> Iterator[Row]:
    columns = [_decode_column(column) for column in table.columns]
    for values in zip(*columns, strict=True):
        yield "invalid UTF-8" if UNDECODABLE in values else dict(zip(table.column_names, values, strict=True))


def _decode_column(column: pa.ChunkedArray | pa.Array) -> list[Any]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_decode(value.as_py()) for value in column.cast(pa.binary())]


def _decode(value: bytes | None) -> Any:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return UNDECODABLE


def _as_text(value: Any) -> str | None:
    return None if value is None else str(value)
