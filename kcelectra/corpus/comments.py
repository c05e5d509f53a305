"""Read comments as a stream, from local files or the Hub, and never lose a good one beside a bad one."""

import glob
import gzip
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import IterableDataset, load_dataset
from datasets.exceptions import DatasetNotFoundError

from kcelectra.errors import InputError

logger = logging.getLogger(__name__)

FORMATS = {".txt": "text", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet"}
READ_BATCH_SIZE = 1000
MAX_NAMED_ROWS = 10  # bad rows that get a line each in the log; the others are counted
GLOB_CHARACTERS = "*?["


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
        row = 0
        for source_format, stream in self._open_streams():
            for table in stream.with_format("arrow").iter(batch_size=READ_BATCH_SIZE):
                batch = []
                for values in _rows_of(table, source_format, self.text_column):
                    comment = self._accept(values, row)
                    row += 1
                    if comment is not None:
                        batch.append(comment)
                self.counts["comments"] += len(batch)
                yield batch

    def _open_streams(self) -> Iterator[tuple[str, IterableDataset]]:
        if not self.files:
            yield "hub", _load_from_hub(self.dataset, split=self.split, revision=self.revision)
        for source_format, files in groupby(self.files, key=lambda file: FORMATS[_suffix(file)]):
            if source_format == "parquet":
                yield source_format, load_dataset("parquet", data_files=list(files), split="train", streaming=True)
            else:
                # Latin-1 maps each byte to one character: a bad byte then costs its row, not the file (measured:
                # the "text" and "json" builders give up on the whole file)
                yield (
                    source_format,
                    load_dataset("text", data_files=list(files), split="train", streaming=True, encoding="latin-1"),
                )

    def _accept(self, values: dict[str, Any] | str, row: int) -> Comment | None:
        """Make a comment of a row, or count and name what is wrong with it."""
        if isinstance(values, str):
            self._drop(values, row)
            return None
        if row == 0 and self.text_column not in values:
            raise InputError(_missing_column(self.dataset, self.text_column, values))
        text = values.get(self.text_column)
        if not isinstance(text, str):
            self._drop("no text", row)
            return None
        self.has_parents |= "parent_id" in values
        return Comment(text, *(_as_text(values.get(key)) for key in ("thread", "comment_id", "parent_id")))

    def _drop(self, reason: str, row: int) -> None:
        self.counts[reason] += 1
        if sum(self.counts.values()) - self.counts["comments"] <= MAX_NAMED_ROWS:
            file, number = locate_row(self.files, row) if self.files else (self.dataset, row + 1)
            logger.warning("%s, row %d: %s; the row is left out", file, number, reason)


def find_files(dataset: str) -> list[str]:
    """Return the local files that a path, a glob or a directory stands for, sorted; none for a Hub id.

    Raises:
        InputError: it looks like a path and nothing is there, or a file has an unknown extension.
    """
    if os.path.isdir(dataset):
        matches = [str(path) for path in Path(dataset).iterdir() if _format_of(str(path)) is not None]
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


def locate_row(files: Iterable[str], row: int) -> tuple[str, int]:
    """Return the file that holds a row of the stream, and the row's number in it, from 1."""
    for file in files:
        num_rows = _count_rows(file)
        if row < num_rows:
            return file, row + 1
        row -= num_rows
    raise IndexError(f"the files hold {row} rows less than asked for")


def _looks_local(dataset: str) -> bool:
    is_path = dataset.startswith((".", "/", "~")) or dataset.count("/") > 1 or "\\" in dataset
    return is_path or any(character in dataset for character in GLOB_CHARACTERS) or _format_of(dataset) is not None


def _suffix(path: str) -> str:
    return Path(path.removesuffix(".gz")).suffix


def _format_of(path: str) -> str | None:
    return FORMATS.get(_suffix(path))


def _open_text(file: str) -> TextIO:
    if file.endswith(".gz"):
        return gzip.open(file, "rt", encoding="latin-1")
    return open(file, encoding="latin-1")


def _count_rows(file: str) -> int:
    if _format_of(file) == "parquet":
        return pq.read_metadata(file).num_rows
    with _open_text(file) as lines:
        return sum(1 for _ in lines)


def _check_file(file: str, text_column: str) -> None:
    try:
        if _format_of(file) != "parquet":
            with _open_text(file) as lines:
                lines.readline()
            return
        columns = pq.read_schema(file).names
    except (OSError, EOFError, pa.ArrowInvalid) as error:
        raise InputError(f"cannot read {file}: {error}") from error
    if text_column not in columns:
        raise InputError(_missing_column(file, text_column, columns))


def _missing_column(source: str, column: str, columns: Iterable[str]) -> str:
    return f"{source} has no column {column!r}; it has {', '.join(map(repr, columns))}: give one as --text_column"


def _load_from_hub(dataset: str, *, split: str, revision: str | None) -> IterableDataset:
    try:
        return load_dataset(dataset, split=split, revision=revision, streaming=True)
    except (DatasetNotFoundError, ValueError, OSError) as error:
        raise InputError(
            f"cannot open {dataset!r}: {error}; give a local path or a dataset of the Hub with its --dataset_split"
        ) from error


def _rows_of(table: pa.Table, source_format: str, text_column: str) -> Iterator[dict[str, Any] | str]:
    """Yield the columns of each row, or the reason why it cannot be read."""
    if source_format in ("text", "json"):
        for line in table.column("text").to_pylist():
            yield _parse_line(line, source_format, text_column)
        return
    wanted = [name for name in (text_column, "thread", "comment_id", "parent_id") if name in table.column_names]
    columns = [_decode_column(table.column(name)) for name in wanted]
    for values in zip(*columns, strict=True):
        yield "invalid UTF-8" if UNDECODABLE in values else dict(zip(wanted, values, strict=True))
    if not wanted:
        yield dict.fromkeys(table.column_names)


UNDECODABLE = object()


def _decode_column(column: pa.ChunkedArray) -> list[Any]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_decode(value.as_py()) for value in column.cast(pa.binary())]


def _decode(value: bytes | None) -> Any:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return UNDECODABLE


def _parse_line(line: str, source_format: str, text_column: str) -> dict[str, Any] | str:
    try:
        text = line.encode("latin-1").decode("utf-8-sig")
        values = {text_column: text} if source_format == "text" else json.loads(text)
    except UnicodeDecodeError:
        return "invalid UTF-8"
    except json.JSONDecodeError:
        return "invalid JSON"
    return values if isinstance(values, dict) else "invalid JSON"


def _as_text(value: Any) -> str | None:
    return None if value is None else str(value)
