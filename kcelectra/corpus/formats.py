"""Read local files of comments in columns, part by part, and lose no good row beside a bad one."""

import codecs
import csv
import gzip
import json
import re
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from kcelectra.errors import InputError

COMPRESSIONS = (".gz", ".zst")  # of the text formats
OPTIONAL_COLUMNS = ("thread", "comment_id", "parent_id")
READ_BATCH_SIZE = 4000  # rows
READ_BYTES = 1 << 20
SMALL_READ_BYTES = 1 << 12  # where a file is damaged
MAX_LINE_BYTES = 1 << 20  # assumption: no comment is longer
MAX_BATCH_BYTES = 4 << 20  # of a Parquet file
DECODED_ROWS = 64  # of a Parquet file, at a time: with a dictionary a small file may hold gigabytes
MAX_QUOTED_LINES = 1000  # of one CSV field; what is longer is a quotation mark that nothing closes
UNREADABLE = (OSError, EOFError, zlib.error, pa.ArrowInvalid)
TEXT_TYPES = (pa.string(), pa.large_string(), pa.string_view())
CSV_FIELD = r'(?:"(?:[^"]++|"")*+"|[^",][^,]*+|)'
RECORD = re.compile(f"{CSV_FIELD}(?:,{CSV_FIELD})*+", re.DOTALL)
OPEN_RECORD = re.compile(rf'(?:{CSV_FIELD},)*+"(?:[^"]++|"")*+', re.DOTALL)  # its last field is not closed
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
T = TypeVar("T")


@dataclass(frozen=True)
class Bad:
    """What stands for a row that is left out."""

    reason: str


csv.field_size_limit(MAX_LINE_BYTES)

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


def format_of(file: str) -> str | None:
    """Return a key of `FORMATS`, or None for a file of another kind."""
    path = Path(file)
    is_compressed = path.suffix in COMPRESSIONS
    suffix = path.with_suffix("").suffix if is_compressed else path.suffix
    return suffix if suffix in FORMATS and not (is_compressed and suffix == ".parquet") else None


def check_file(file: str, text_column: str) -> None:
    """See at the start, and not after hours, that a file opens and has the column.

    Raises:
        UnreadableFile: it does not.
        InputError: it has not, or it is UTF-16.
    """
    try:
        if format_of(file) == ".parquet":
            columns = pq.read_schema(file).names
            if text_column not in columns:
                raise InputError(missing_column(file, text_column, columns))
            return
        with _open(file) as stream:
            if stream.read(2).startswith(UTF16_MARKS):
                raise InputError(f"{file} is UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`")
    except UNREADABLE as error:
        raise UnreadableFile(f"cannot read {file}: {error}; repair it or leave it out") from error
    if format_of(file) in (".csv", ".tsv"):
        next(read_part(Part(file), text_column), None)


def missing_column(source: str, column: str, columns: Iterable[str]) -> str:
    """Say what the source has instead."""
    named = ", ".join(map(repr, columns)) or "none at all"
    return f"{source} has no column {column!r}; it has {named}: give one as --text_column"


def split_file(file: str, part_bytes: int) -> list[Part]:
    """Split a file into parts that can be read apart: at line ends, or between row groups.

    Args:
        file: of any format; compressed files, CSV and TSV stay whole.
        part_bytes: > 0, bytes of a part, about.

    Raises:
        UnreadableFile: the file cannot be read.
    """
    try:
        if format_of(file) == ".parquet":
            return _split_row_groups(file, part_bytes)
        size = Path(file).stat().st_size
        if Path(file).suffix not in (".txt", ".jsonl", ".ndjson") or size <= part_bytes:
            return [Part(file, num_bytes=size)]
        edges = [0]
        with open(file, "rb") as stream:
            while edges[-1] < size:
                edges.append(_next_line(stream, min(edges[-1] + part_bytes, size)))
    except UNREADABLE as error:
        raise UnreadableFile(f"cannot read {file}: {error}; repair it or leave it out") from error
    return [Part(file, start, stop, stop - start) for start, stop in zip(edges[:-1], edges[1:], strict=True)]


def _next_line(stream: BinaryIO, position: int) -> int:
    """Return where the first line begins at a position or after it."""
    stream.seek(position - 1)
    while (piece := stream.readline(READ_BYTES)) and not piece.endswith(b"\n"):
        pass
    return stream.tell()


def _split_row_groups(file: str, part_bytes: int) -> list[Part]:
    metadata = pq.read_metadata(file)
    parts, start, size = ([] if metadata.num_row_groups else [Part(file)]), 0, 0
    for group in range(metadata.num_row_groups):
        size += metadata.row_group(group).total_byte_size
        if size >= part_bytes or group == metadata.num_row_groups - 1:
            parts.append(Part(file, start, group + 1, size))
            start, size = group + 1, 0
    return parts


def read_part(part: Part, text_column: str) -> Iterator[Rows]:
    """Yield the rows of a part, in order.

    Files are read here and not by `datasets`: measured with 5.2.0, one bad byte costs it the whole file, a `.gz` with
    Hangul cannot be read once bytes may be bad, and an empty Parquet shard ends the stream.

    Args:
        part: of a file.
        text_column: column that holds the comment; of a `.txt` each line is one.

    Raises:
        UnreadableFile: the file is damaged; every row before was yielded.
        InputError: the column does not exist.
    """
    num_rows = 0
    try:
        for rows in FORMATS[format_of(part.file) or ""](part, text_column):
            num_rows += len(rows)
            yield rows
    except UNREADABLE as error:
        raise UnreadableFile(f"cannot read {part.file} after row {num_rows}: {error}") from error


def _read_text(part: Part, text_column: str) -> Iterator[Rows]:
    for lines in _read_lines(part):
        bad = [(number, line.reason) for number, line in enumerate(lines) if isinstance(line, Bad)]
        yield Rows({text_column: [line for line in lines if isinstance(line, str)] if bad else lines}, bad)


def _read_json(part: Part, text_column: str) -> Iterator[Rows]:
    is_first = part.start == 0
    for lines in _read_lines(part):
        yield to_rows(map(_parse_json, lines), part.file, text_column, is_first=is_first)
        is_first = False


def _parse_json(line: str | Bad) -> Row:
    if isinstance(line, Bad):
        return line
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return Bad("invalid JSON")
    return values if isinstance(values, dict) else Bad("invalid JSON")


def _read_csv(part: Part, text_column: str) -> Iterator[Rows]:
    yield from _read_table(part, text_column, _join_quoted, lambda line: next(csv.reader([line]), []))


def _read_tsv(part: Part, text_column: str) -> Iterator[Rows]:
    """Read lines of fields between tabs; quotation marks mean nothing, as in NSMC."""
    yield from _read_table(part, text_column, iter, lambda line: line.split("\t"))


def _read_table(
    part: Part,
    text_column: str,
    join: Callable[[Iterator[str | Bad]], Iterator[str | Bad]],
    split: Callable[[str], list[str]],
) -> Iterator[Rows]:
    lines = join(chain.from_iterable(_read_lines(part)))
    header = next(lines, "")
    if isinstance(header, Bad):
        raise InputError(f"{part.file}: cannot read its header: {header.reason}; repair it, or convert it to UTF-8")
    names = split(header)
    if header and text_column not in names:
        raise InputError(missing_column(part.file, text_column, names))
    for batch in _in_batches(lines, lambda line: (1, len(line) if isinstance(line, str) else 0), READ_BYTES):
        yield to_rows((_parse_fields(line, names, split) for line in batch), part.file, text_column)


def _in_batches(items: Iterable[T], size_of: Callable[[T], tuple[int, int]], max_size: int) -> Iterator[list[T]]:
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


def _parse_fields(line: str | Bad, names: list[str], split: Callable[[str], list[str]]) -> Row:
    if isinstance(line, Bad):
        return line
    try:
        values = split(line)
    except csv.Error as error:
        return Bad(f"invalid CSV: {error}")
    if len(values) != len(names):
        return Bad("not as many fields as the header")
    return dict(zip(names, values, strict=True))


def _join_quoted(lines: Iterator[str | Bad]) -> Iterator[str | Bad]:
    """Join the lines of a quoted field; a quotation mark that nothing closes costs its own line only."""
    ahead: deque[str | Bad] = deque()
    damage, num_fields = None, None  # of the file; of the header
    while True:
        line = ahead.popleft() if ahead else next(lines, None)
        if line is None and damage is not None:
            raise damage
        if line is None:
            return
        if isinstance(line, str) and '"' in line and OPEN_RECORD.fullmatch(line):
            try:
                _look_ahead(ahead, lines)
            except UNREADABLE as error:
                damage, lines = error, iter(())
            line = _join_record(line, ahead, num_fields)
        if num_fields is None and isinstance(line, str):
            num_fields = len(next(csv.reader([line]), []))
        yield line


def _look_ahead(ahead: deque[str | Bad], lines: Iterator[str | Bad]) -> None:
    num_chars = sum(len(line) for line in ahead if isinstance(line, str))
    while len(ahead) < MAX_QUOTED_LINES and num_chars < MAX_LINE_BYTES and (line := next(lines, None)) is not None:
        ahead.append(line)
        num_chars += len(line) if isinstance(line, str) else 0


def _join_record(line: str, ahead: deque[str | Bad], num_fields: int | None) -> str | Bad:
    """Return a line joined with those after it up to the one that closes its field, which are taken away."""
    closing = next((i for i, other in enumerate(ahead) if isinstance(other, Bad) or other.count('"') % 2), len(ahead))
    following = list(islice(ahead, closing + 1))
    if closing < len(ahead) and not isinstance(following[-1], Bad):
        record = "\n".join([line, *map(str, following)])
        is_record = RECORD.fullmatch(record) is not None
        if is_record and num_fields in (None, len(next(csv.reader([record])))):
            for _ in following:
                ahead.popleft()
            return record
    return Bad("a quotation mark that nothing closes")


def _read_lines(part: Part) -> Iterator[list[str | Bad]]:
    """Yield the lines of a text file without their ends, in batches of about `READ_BYTES`."""
    rest = b""
    is_long = False  # within a line that is too long, of which no byte is kept
    for piece in _read_pieces(part):
        block, end, tail = piece.rpartition(b"\n")
        if end:
            yield _split_lines(block if is_long else rest + block, is_long=is_long)
            rest, is_long = tail, False
        elif not is_long:
            rest += tail
        if len(rest) > MAX_LINE_BYTES:
            rest, is_long = b"", True
    if rest or is_long:
        yield _split_lines(rest, is_long=is_long)


def _read_pieces(part: Part) -> Iterator[bytes]:
    """Yield the bytes of a part; where the file is damaged, all before the damage."""
    position, stop = part.start, part.stop or sys.maxsize
    for step in (READ_BYTES, SMALL_READ_BYTES):
        try:
            with _open(part.file) as stream:
                _skip(stream, position)
                # of a damaged `.gz`, `read1` gives what there is, where `read` waits for more and fails
                read = stream.read1 if step == SMALL_READ_BYTES and isinstance(stream, gzip.GzipFile) else stream.read
                while piece := read(min(step, stop - position)):
                    yield piece.removeprefix(codecs.BOM_UTF8) if position == 0 else piece
                    position += len(piece)
            return
        except UNREADABLE:
            if step == SMALL_READ_BYTES:
                raise


def _skip(stream: BinaryIO, num_bytes: int) -> None:
    if stream.seekable():
        stream.seek(num_bytes)
        return
    while num_bytes > 0 and (piece := stream.read(min(READ_BYTES, num_bytes))):
        num_bytes -= len(piece)


def _split_lines(block: bytes, *, is_long: bool) -> list[str | Bad]:
    """Split a block at its line ends. Its first line may be too long; `is_long` says that this is the end of one."""
    is_long = is_long or (block.find(b"\n") if b"\n" in block else len(block)) > MAX_LINE_BYTES
    try:
        text = block.decode()
        lines: list[str | Bad] = [*text.split("\n")]
        if "\r" in text:
            lines = [line.removesuffix("\r") for line in text.split("\n")]
    except UnicodeDecodeError:
        lines = [_decode_line(line) for line in block.split(b"\n")]
    if is_long:
        lines[0] = Bad("a line of more than 1 MiB")
    return lines


def _decode_line(line: bytes) -> str | Bad:
    try:
        return line.decode().removesuffix("\r")
    except UnicodeDecodeError:
        return Bad("invalid UTF-8")


def _open(file: str) -> BinaryIO:
    if file.endswith(".gz"):
        return cast(BinaryIO, gzip.open(file))
    if file.endswith(".zst"):
        return cast(BinaryIO, pa.CompressedInputStream(pa.OSFile(file), "zstd"))
    return open(file, "rb")


def _read_parquet(part: Part, text_column: str) -> Iterator[Rows]:
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
                for joined in _in_batches(_cut(batches), lambda batch: (len(batch), batch.nbytes), MAX_BATCH_BYTES):
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
    """Return ids as text; pandas makes floats of whole numbers where one is missing."""
    if column.type in TEXT_TYPES or pa.types.is_dictionary(column.type):
        return [i or None for i in _read_texts(column)]
    if pa.types.is_floating(column.type):
        return _as_texts(i if i is None or not i.is_integer() else int(i) for i in column.to_pylist())
    try:
        return column.cast(pa.string()).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return _as_texts(column.to_pylist())


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
            columns[name] = _as_texts(row.get(name) for row in good)
    return Rows(columns, bad)


def _as_texts(ids: Iterable[Any]) -> list[str | None]:
    """Return ids as text that can be written; an empty one is none."""
    return [i or None if i is None or (isinstance(i, str) and i.isascii()) else _as_text(i) for i in ids]


def _as_text(value: Any) -> str:
    return str(value).encode("utf-8", "replace").decode()


#: How each format is read, by extension; a text format may be compressed.
FORMATS: dict[str, Callable[[Part, str], Iterator[Rows]]] = {
    ".txt": _read_text,
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
