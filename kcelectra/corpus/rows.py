"""Rows of comments in columns: what readers of files make, with a reason for each row that is left out."""

import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa

from kcelectra.errors import InputError

OPTIONAL_COLUMNS = ("thread", "comment_id", "parent_id")
READ_BATCH_SIZE = 4000  # rows
READ_BYTES = 1 << 20
UNREADABLE = (OSError, EOFError, zlib.error, pa.ArrowInvalid)
T = TypeVar("T")


@dataclass(frozen=True)
class Bad:
    """What stands for a row that is left out."""

    reason: str


#: A row as it was read: its columns, or why it cannot be.
Row = dict[str, Any] | Bad


@dataclass(frozen=True)
class Part:
    """A piece of a file: bytes `start` to `stop` of a text file, row groups of a Parquet file; all of it if None.

    `num_bytes` says how much work it is, about.
    """

    file: str
    start: int = 0
    stop: int | None = None
    num_bytes: int = 0


@dataclass
class Rows:
    """Some consecutive rows of a part.

    Attributes:
        columns: values by column, of the good rows: the text, a `str` each, and those of `OPTIONAL_COLUMNS` that the
            source has, `str` or None.
        bad: of each row that was left out, its number among these rows, from 0, and the reason.
    """

    columns: dict[str, list[Any]]
    bad: list[tuple[int, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) + len(self.bad)


class UnreadableFile(InputError):
    """A file that is damaged from some row on."""


def missing_column(source: str, column: str, columns: Iterable[str]) -> str:
    """Say what the source has instead."""
    named = ", ".join(map(repr, columns)) or "none at all"
    return f"{source} has no column {column!r}; it has {named}: give one as --text_column"


def to_rows(rows: Iterable[Row], source: str, text_column: str, *, is_first: bool = True) -> Rows:
    """Sort rows into good ones, by column, and bad ones.

    Args:
        rows: as they were read.
        source: their file, for messages.
        text_column: column that holds the comment.
        is_first: they are the first of their source, which shows its columns.

    Raises:
        InputError: they are the first, and none has such a column.
    """
    rows = list(rows)
    columns_of = [list(row) for row in rows if isinstance(row, dict)] if is_first else []
    if columns_of and not any(text_column in names for names in columns_of):
        raise InputError(missing_column(source, text_column, columns_of[0]))
    good: list[dict[str, Any]] = []
    bad = []
    for number, row in enumerate(rows):
        if isinstance(row, Bad):
            bad.append((number, row.reason))
        elif isinstance(row.get(text_column), str):
            good.append(row)
        else:
            bad.append((number, "no text"))
    columns = {text_column: [row[text_column] for row in good]}
    for name in OPTIONAL_COLUMNS:
        if name != text_column and any(name in row for row in good):
            columns[name] = as_texts(row.get(name) for row in good)
    return Rows(columns, bad)


def as_texts(ids: Iterable[Any]) -> list[str | None]:
    """Return ids as text that can be written; an empty one is none."""
    return [i or None if i is None or (isinstance(i, str) and i.isascii()) else _as_text(i) for i in ids]


def _as_text(value: Any) -> str | None:
    if isinstance(value, float):  # pandas makes floats of whole numbers where one is missing
        value = int(value) if value.is_integer() else None if math.isnan(value) else value
    return None if value is None else str(value).encode("utf-8", "replace").decode()


def in_batches(items: Iterable[T], size_of: Callable[[T], tuple[int, int]], max_size: int) -> Iterator[list[T]]:
    """Yield items in batches of about `READ_BATCH_SIZE` rows or `max_size`; those before the damage of a file too.

    Args:
        items: lines, or batches of Arrow.
        size_of: rows of an item, and its characters or bytes.
        max_size: of a batch.
    """
    batch, num_rows, size = [], 0, 0
    try:
        for item in items:
            batch.append(item)
            num_rows, size = num_rows + size_of(item)[0], size + size_of(item)[1]
            if num_rows >= READ_BATCH_SIZE or size > max_size:
                yield batch
                batch, num_rows, size = [], 0, 0
    except UNREADABLE:
        yield batch
        raise
    yield batch
