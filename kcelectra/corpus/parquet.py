"""Read Parquet files, and the tables of Arrow that other readers give."""

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kcelectra.corpus.rows import (
    OPTIONAL_COLUMNS,
    READ_BYTES,
    UNREADABLE,
    Bad,
    Part,
    Rows,
    UnreadableFile,
    as_texts,
    in_batches,
    missing_column,
    to_rows,
)
from kcelectra.errors import InputError

MAX_BATCH_BYTES = 4 << 20
DECODED_ROWS = 64  # at a time: with a dictionary a small file may hold gigabytes
TEXT_TYPES = (pa.string(), pa.large_string(), pa.string_view())


def check_schema(file: str, text_column: str) -> None:
    """See that a file opens and has the column."""
    columns = pq.read_schema(file).names
    if text_column not in columns:
        raise InputError(missing_column(file, text_column, columns))


def split_row_groups(file: str, part_bytes: int) -> list[Part]:
    """Split a file between row groups, into parts of about so many bytes."""
    metadata = pq.read_metadata(file)
    parts, start, size = ([] if metadata.num_row_groups else [Part(file)]), 0, 0
    for group in range(metadata.num_row_groups):
        size += metadata.row_group(group).total_byte_size
        if size >= part_bytes or group == metadata.num_row_groups - 1:
            parts.append(Part(file, start, group + 1, size))
            start, size = group + 1, 0
    return parts


def read_parquet(part: Part, text_column: str) -> Iterator[Rows]:
    """Read row groups one by one, so that a damaged one costs no other."""
    damage = None
    with pq.ParquetFile(part.file, buffer_size=READ_BYTES) as parquet:
        wanted = [name for name in (text_column, *OPTIONAL_COLUMNS) if name in parquet.schema_arrow.names]
        sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        for group in range(len(sizes))[part.start : part.stop]:
            size = max(1, parquet.metadata.row_group(group).total_byte_size)
            num_rows = max(1, min(DECODED_ROWS, MAX_BATCH_BYTES * sizes[group] // size))
            batches = parquet.iter_batches(num_rows, row_groups=[group], columns=wanted, use_threads=False)
            try:
                for joined in in_batches(_cut(batches), lambda batch: (len(batch), batch.nbytes), MAX_BATCH_BYTES):
                    if joined:
                        yield from_arrow(pa.Table.from_batches(joined), part.file, text_column)
            except UNREADABLE as error:
                damage = damage or (f"cannot read {part.file} after row {sum(sizes[:group])}: {error}", error)
    if damage is not None:
        raise UnreadableFile(damage[0]) from damage[1]


def _cut(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield batches without dictionaries, cut to `MAX_BATCH_BYTES`."""
    for batch in batches:
        columns = [i.dictionary_decode() if pa.types.is_dictionary(i.type) else i for i in batch.columns]
        batch = pa.RecordBatch.from_arrays(columns, batch.schema.names)
        num_rows = max(1, len(batch) * MAX_BATCH_BYTES // max(1, batch.nbytes))
        yield from (batch.slice(start, num_rows) for start in range(0, len(batch), num_rows))


def from_arrow(table: pa.Table | pa.RecordBatch, source: str, text_column: str) -> Rows:
    """Return the rows of an Arrow table.

    Raises:
        InputError: it has no such column.
    """
    if text_column not in table.column_names:
        raise InputError(missing_column(source, text_column, table.column_names))
    columns = {text_column: _read_texts(table.column(text_column))}
    columns |= {name: _read_ids(table.column(name)) for name in OPTIONAL_COLUMNS if name in table.column_names}
    if all(isinstance(text, str) for text in columns[text_column]) and not any(
        isinstance(value, Bad) for name, values in columns.items() if name != text_column for value in values
    ):
        return Rows(columns)
    rows = (
        next((value for value in values if isinstance(value, Bad)), dict(zip(columns, values, strict=True)))
        for values in zip(*columns.values(), strict=True)
    )
    return to_rows(rows, source, text_column)


def _read_texts(column: pa.ChunkedArray | pa.Array) -> list[str | Bad | None]:
    """Return a column of text; one of another type has none."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.type not in TEXT_TYPES:
        return [None] * len(column)
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [None if value is None else _decode(value) for value in column.cast(pa.large_binary()).to_pylist()]


def _decode(value: bytes) -> str | Bad:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return Bad("invalid UTF-8")


def _read_ids(column: pa.ChunkedArray | pa.Array) -> list[Any]:
    """Return ids as text."""
    if column.type in TEXT_TYPES or pa.types.is_dictionary(column.type):
        return [i or None for i in _read_texts(column)]
    if pa.types.is_floating(column.type):
        return as_texts(column.to_pylist())
    try:
        return column.cast(pa.string()).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return as_texts(column.to_pylist())
