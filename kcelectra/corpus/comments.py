"""Comments of a source as a stream: local files or a dataset of the Hub."""

import glob
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from kcelectra.corpus.formats import FORMATS, check_file, format_of, read_part, split_file
from kcelectra.corpus.lines import COMPRESSIONS
from kcelectra.corpus.parquet import from_arrow
from kcelectra.corpus.rows import OPTIONAL_COLUMNS, READ_BATCH_SIZE, UNREADABLE, Rows
from kcelectra.corpus.vectorized import clean_batch
from kcelectra.corpus.work_dir import WORK_DIR
from kcelectra.errors import InputError
from kcelectra.manifest import MANIFEST, read_stage

logger = logging.getLogger(__name__)

MAX_NAMED_ROWS = 10  # bad rows that get a line each in the log; the others are counted
MAX_NAMED_FILES = 10  # that are left out of a directory
PART_BYTES = 4 << 20  # of a file; what is read again at most, where it can be split, to go on in the middle
HASHED_BYTES = 1 << 20  # at either end of a file
START = {"file": 0, "start": 0, "batch": 0, "row": 0}
GLOB_CHARACTERS = "*?["


class Comment(NamedTuple):
    """One comment as its source has it; `thread`, `comment_id` and `parent_id` are None where there is none."""

    text: str
    thread: str | None = None
    comment_id: str | None = None
    parent_id: str | None = None


@dataclass
class CommentReader:
    """Comments of a source, in its order.

    Args:
        dataset: a file, a glob, a directory (`.txt`, one comment a line; `.jsonl`, `.csv` and `.tsv`, with a header;
            these also as `.gz` and `.zst`; `.parquet`), or the id of a dataset on the Hub.
        split: of a Hub dataset.
        revision: of a Hub dataset.
        text_column: column that holds the comment.

    Attributes:
        counts: `comments` read, and rows dropped by reason (`invalid UTF-8`, `invalid JSON`, `no text`, ...), in the
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
            check_file(file, self.text_column)

    def __iter__(self) -> Iterator[list[Comment]]:
        """Yield batches of comments, from the beginning."""
        return (comments for _, comments in self.read())

    def read(self, position: dict[str, Any] | None = None) -> Iterator[tuple[dict[str, Any], list[Comment]]]:
        """Yield batches of comments, each behind its position, where another reader of the source can begin.

        Args:
            position: JSON, of the first batch; the beginning if None.

        Raises:
            InputError: the source has no such position; and see the class.
        """
        is_missing = position is not None
        position = position or {"place": None, "counts": {}, "has_parents": False}
        self.counts = Counter(position["counts"])
        self.has_parents = position["has_parents"]
        for source, place, rows in self._read_places(position["place"]):
            if is_missing and place != position["place"]:
                break
            is_missing = False
            position = {"place": place, "counts": dict(self.counts), "has_parents": self.has_parents}
            self._drop(rows, source, place["row"])
            self.has_parents |= "parent_id" in rows.columns
            texts = rows.columns[self.text_column]
            others = (rows.columns.get(name) or [None] * len(texts) for name in OPTIONAL_COLUMNS)
            self.counts["comments"] += len(texts)
            yield position, list(map(Comment, texts, *others))
        if is_missing:
            raise InputError(
                f"{self.dataset} has no place {position['place']}, where it was to be read on: it has changed; put it "
                "back as it was, or begin a new run"
            )

    def _read_places(self, first: dict[str, Any] | None) -> Iterator[tuple[str, dict[str, Any], Rows]]:
        """Yield the source of each batch, its place and its rows, from a place on."""
        if self.files:
            yield from self._read_files(START | (first or {}))
            return
        row, state = (0, None) if first is None else (first["row"], first.get("state"))
        hub = read_hub(self.dataset, self.text_column, split=self.split, revision=self.revision, state=state)
        for state, rows in hub:
            yield self.dataset, {"row": row, "state": state}, rows
            row += len(rows)

    def _read_files(self, place: dict[str, int]) -> Iterator[tuple[str, dict[str, Any], Rows]]:
        for index, file in enumerate(self.files):
            if index < place["file"]:
                continue
            row = place["row"]
            for part in split_file(file, PART_BYTES):
                if part.start < place["start"]:
                    continue
                for batch, rows in enumerate(read_part(part, self.text_column)):
                    if batch >= place["batch"]:
                        yield file, {"file": index, "start": part.start, "batch": batch, "row": row}, rows
                        row += len(rows)
                place = START

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells, as far as a moment allows, whether two readers read the same comments; JSON.

        Of files it is the name, the size and a sha256 of the first and the last MiB; of a Hub dataset the commit.

        Raises:
            InputError: the Hub does not tell the commit.
        """
        if not self.files:
            source = {"split": self.split, "commit": find_revision(self.dataset, self.revision)}
            return {"dataset": self.dataset, "text_column": self.text_column, **source}
        return {"text_column": self.text_column, "files": [_describe_file(file) for file in self.files]}

    def _drop(self, rows: Rows, source: str, num_before: int) -> None:
        for number, reason in rows.bad:
            if sum(self.counts.values()) - self.counts["comments"] < MAX_NAMED_ROWS:
                logger.warning("%s, row %d: %s; the row is left out", source, num_before + number + 1, reason)
            self.counts[reason] += 1


def read_texts(reader: CommentReader, *, rules: str, min_chars: int) -> Iterator[str]:
    """Yield cleaned comments of one pass; those with fewer than `min_chars` characters are left out."""
    for comments in reader:
        cleaned = clean_batch((comment.text for comment in comments), rules)
        yield from (text for text in cleaned if len(text) >= min_chars)


def choose_cleaning(dataset: str, rules: str | None = None, min_chars: int | None = None) -> dict[str, Any]:
    """Return `rules` and `min_chars`, those not given by what the dataset is: a built corpus is clean already."""
    default_rules, default_chars = ("v2022", 10) if find_corpus_cleaning(dataset) is None else ("none", 0)
    return {
        "rules": default_rules if rules is None else rules,
        "min_chars": default_chars if min_chars is None else min_chars,
    }


def find_corpus_cleaning(dataset: str) -> dict[str, Any] | None:
    """Return the `rules` and `min_chars` that a built corpus, or shards of some, were made with; None for others."""
    if os.path.isdir(dataset):
        manifest = read_stage(dataset, "corpus")
    else:
        files = _match(dataset)
        found = {directory: read_stage(directory, "corpus") or {} for directory in map(os.path.dirname, files)}
        is_shard = [os.path.basename(file) in found[os.path.dirname(file)].get("files", ()) for file in files]
        manifest = next(iter(found.values())) if files and all(is_shard) else None
    if manifest is None:
        return None
    return {name: manifest.get("settings", {}).get(name) for name in ("rules", "min_chars")}


def _match(dataset: str) -> list[str]:
    if os.path.isfile(dataset):
        return [dataset]
    return [path for path in glob.glob(dataset, recursive=True) if os.path.isfile(path)]


def find_files(dataset: str) -> list[str]:
    """Return the local files that a path, a glob or a directory stands for, sorted; none for a Hub id.

    Raises:
        InputError: it looks like a path and nothing is there, a file has an unknown extension, or a directory is not
            finished.
    """
    if os.path.isdir(dataset):
        if Path(dataset, WORK_DIR).is_dir() and not Path(dataset, MANIFEST).exists():
            raise InputError(f"{dataset} is not finished; run the command that writes it again")
        matches = _find_inside(dataset)
    else:
        matches = _match(dataset)
    if not matches and _looks_local(dataset):
        raise InputError(
            f"no file matches {dataset!r}; give a file, a quoted glob, a directory, or a Hub id owner/name"
        )
    for path in matches:
        if format_of(path) is None:
            raise InputError(
                f"{path}: unknown extension; use one of {', '.join(FORMATS)}, text also as {', '.join(COMPRESSIONS)}"
            )
    return sorted(matches)


def _find_inside(directory: str) -> list[str]:
    """Return the files in a directory that can be read, and say what else is there, unless it is a stage's."""
    inside = sorted(Path(directory).iterdir())
    files = [path for path in inside if not path.is_dir() and not path.is_fifo() and format_of(str(path)) is not None]
    if not files:
        raise InputError(
            f"{directory} holds no file that can be read ({', '.join(FORMATS)}, text also as "
            f"{', '.join(COMPRESSIONS)}); for folders below it give '{Path(directory, '**', '*.jsonl')}'"
        )
    left_out = [f"{path.name}/" if path.is_dir() else path.name for path in inside if path not in files]
    left_out = [name for name in left_out if name[0] != "."]
    if left_out and MANIFEST not in left_out:
        more = f" and {len(left_out) - MAX_NAMED_FILES} more" if len(left_out) > MAX_NAMED_FILES else ""
        logger.warning("%s: %s%s: left out", directory, ", ".join(left_out[:MAX_NAMED_FILES]), more)
    return [str(path) for path in files]


def _looks_local(dataset: str) -> bool:
    is_path = dataset.startswith((".", "/", "~")) or dataset.count("/") > 1 or "\\" in dataset
    is_glob = any(character in dataset for character in GLOB_CHARACTERS)
    return is_path or is_glob or format_of(dataset) is not None or os.path.isdir(dataset)


def read_hub(
    dataset: str, text_column: str, *, split: str, revision: str | None, state: dict[str, Any] | None = None
) -> Iterator[tuple[dict[str, Any] | None, Rows]]:
    """Yield the rows of a dataset of the Hub as they arrive, each batch behind the state of the stream in front of it.

    Raises:
        InputError: it cannot be opened or read, or has no such column.
    """
    from datasets import load_dataset  # takes half a second and 70 MB, which no worker on local files needs
    from datasets.exceptions import DatasetNotFoundError

    try:
        stream = load_dataset(dataset, split=split, revision=revision, streaming=True).with_format("arrow")
    except (DatasetNotFoundError, ValueError, OSError) as error:
        raise InputError(
            f"cannot open {dataset!r}: {error}; give a local path, or a Hub dataset with its --dataset_split and "
            "--dataset_revision (for a corpus --split and --revision)"
        ) from error
    if state is not None:
        stream.load_state_dict(state)
    try:
        for table in stream.iter(batch_size=READ_BATCH_SIZE):
            wanted = [name for name in (text_column, *OPTIONAL_COLUMNS) if name in table.column_names]
            yield state, from_arrow(table.select(wanted) if text_column in wanted else table, dataset, text_column)
            state = stream.state_dict()
    except InputError:
        raise
    except (*UNREADABLE, ValueError) as error:  # of bytes that are no UTF-8, of a CSV file that is none
        raise InputError(f"cannot read {dataset!r}: {error}; download its files and give their path") from error


def find_revision(dataset: str, revision: str | None = None) -> str:
    """Return the commit of a dataset of the Hub.

    Raises:
        InputError: there is no such dataset or revision, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        return str(HfApi().dataset_info(dataset, revision=revision).sha)
    except (HTTPError, HFValidationError, OSError) as error:
        raise InputError(f"cannot open {dataset!r}: {error}; give a local path or a Hub id owner/name") from error


def _describe_file(file: str) -> dict[str, Any]:
    try:
        with open(file, "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            digest = hashlib.sha256()
            for start in (0, max(0, size - HASHED_BYTES)):
                stream.seek(start)
                digest.update(stream.read(HASHED_BYTES))
    except OSError as error:
        raise InputError(f"cannot read {file}: {error}; repair it or leave it out") from error
    return {"name": os.path.basename(file), "size": size, "sha256": digest.hexdigest()}
