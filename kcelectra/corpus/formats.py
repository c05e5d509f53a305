"""Read local files of comments in columns, part by part, and lose no good row beside a bad one."""

from collections.abc import Callable, Iterator
from pathlib import Path

from kcelectra.corpus.lines import (
    COMPRESSIONS,
    check_encoding,
    read_csv,
    read_json,
    read_text,
    read_tsv,
    split_at_lines,
)
from kcelectra.corpus.parquet import check_schema, read_parquet, split_row_groups
from kcelectra.corpus.rows import UNREADABLE, Part, Rows, UnreadableFile


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
            check_schema(file, text_column)
        else:
            check_encoding(file)
    except UNREADABLE as error:
        raise UnreadableFile(f"cannot read {file}: {error}; repair it or leave it out") from error
    if format_of(file) in (".jsonl", ".ndjson", ".csv", ".tsv"):
        next(read_part(Part(file), text_column), None)


def split_file(file: str, part_bytes: int) -> list[Part]:
    """Split a file into parts that can be read apart: at line ends, or between row groups.

    Args:
        file: of any format; compressed files, CSV and TSV stay whole.
        part_bytes: > 0, bytes of a part, about.

    Raises:
        UnreadableFile: the file cannot be read.
    """
    try:
        return (split_row_groups if format_of(file) == ".parquet" else split_at_lines)(file, part_bytes)
    except UNREADABLE as error:
        raise UnreadableFile(f"cannot read {file}: {error}; repair it or leave it out") from error


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


#: How each format is read, by extension; a text format may be compressed.
FORMATS: dict[str, Callable[[Part, str], Iterator[Rows]]] = {
    ".txt": read_text,
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
}
