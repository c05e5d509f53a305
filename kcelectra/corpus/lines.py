"""Read files whose rows are lines: plain text, JSON, CSV and TSV, compressed or not."""

import codecs
import csv
import gzip
import json
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from kcelectra.corpus.rows import READ_BYTES, UNREADABLE, Bad, Part, Row, Rows, in_batches, missing_column, to_rows
from kcelectra.errors import InputError

COMPRESSIONS = (".gz", ".zst")
SMALL_READ_BYTES = 1 << 12  # where a file is damaged
MAX_LINE_BYTES = 1 << 20  # assumption: no comment is longer
MAX_QUOTED_LINES = 1000  # of one CSV field; what is longer is a quotation mark that nothing closes
CSV_FIELD = r'(?:"(?:[^"]++|"")*+"|[^",][^,]*+|)'
RECORD = re.compile(f"{CSV_FIELD}(?:,{CSV_FIELD})*+", re.DOTALL)
OPEN_RECORD = re.compile(rf'(?:{CSV_FIELD},)*+"(?:[^"]++|"")*+', re.DOTALL)  # its last field is not closed
BLANK = Bad("blank line")
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")

csv.field_size_limit(MAX_LINE_BYTES)


def check_encoding(file: str) -> None:
    """See that a file opens and is not UTF-16."""
    with _open(file) as stream:
        if stream.read(2).startswith(UTF16_MARKS):
            raise InputError(f"{file} is UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`")


def split_at_lines(file: str, part_bytes: int) -> list[Part]:
    """Split a file at line ends; a compressed one, CSV and TSV stay whole."""
    size = Path(file).stat().st_size
    if Path(file).suffix not in (".txt", ".jsonl", ".ndjson") or size <= part_bytes:
        return [Part(file, num_bytes=size)]
    edges = [0]
    with open(file, "rb") as stream:
        while edges[-1] < size:
            edges.append(_next_line(stream, min(edges[-1] + part_bytes, size)))
    return [Part(file, start, stop, stop - start) for start, stop in zip(edges[:-1], edges[1:], strict=True)]


def _next_line(stream: BinaryIO, position: int) -> int:
    """Return where the first line begins at a position or after it."""
    stream.seek(position - 1)
    while (piece := stream.readline(READ_BYTES)) and not piece.endswith(b"\n"):
        pass
    return stream.tell()


def read_text(part: Part, text_column: str) -> Iterator[Rows]:
    """Read lines that are texts."""
    for lines in _read_lines(part):
        bad = [(number, line.reason) for number, line in enumerate(lines) if isinstance(line, Bad)]
        yield Rows({text_column: [line for line in lines if isinstance(line, str)] if bad else lines}, bad)


def read_json(part: Part, text_column: str) -> Iterator[Rows]:
    """Read lines that are JSON objects."""
    is_first = part.start == 0
    for lines in _read_lines(part):
        yield to_rows(map(_parse_json, lines), part.file, text_column, is_first=is_first)
        is_first = False


def _parse_json(line: str | Bad) -> Row:
    if isinstance(line, Bad):
        return line
    if not line.strip():
        return BLANK
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return Bad("invalid JSON")
    return values if isinstance(values, dict) else Bad("invalid JSON")


def read_csv(part: Part, text_column: str) -> Iterator[Rows]:
    """Read lines of fields between commas; a quoted field may hold lines."""
    yield from _read_table(part, text_column, _join_quoted, lambda line: next(csv.reader([line]), []))


def read_tsv(part: Part, text_column: str) -> Iterator[Rows]:
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
    try:
        names = split(header)
    except csv.Error as error:
        raise InputError(f"{part.file}: cannot read its header: {error}; lines end with \\n or \\r\\n") from error
    if header and text_column not in names:
        raise InputError(missing_column(part.file, text_column, names))
    for batch in in_batches(lines, lambda line: (1, len(line) if isinstance(line, str) else 0), READ_BYTES):
        yield to_rows((_parse_fields(line, names, split) for line in batch), part.file, text_column)


def _parse_fields(line: str | Bad, names: list[str], split: Callable[[str], list[str]]) -> Row:
    if isinstance(line, Bad):
        return line
    if not line.strip():
        return BLANK
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
            num_fields = _count_fields(line)
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
        num_here = _count_fields(record) if RECORD.fullmatch(record) else None
        if num_here is not None and num_fields in (None, num_here):
            for _ in following:
                ahead.popleft()
            return record
    return Bad("a quotation mark that nothing closes")


def _count_fields(record: str) -> int | None:
    """Return the fields of a CSV record, None if it is none."""
    try:
        return len(next(csv.reader([record]), []))
    except csv.Error:
        return None


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
