"""Count the words of a corpus, exactly and in bounded memory: all that training a vocabulary needs of it."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tqdm import tqdm

from kcelectra.errors import InputError

NUM_CODES = 0x110000
MAX_COUNTED = 250_000  # distinct words that are counted in memory before they go to the disk
TEXTS_AT_A_TIME = 10_000
WORDS_AT_A_TIME = 50_000
MAX_CHARACTERS = 100  # of a word; `BertTokenizer` makes [UNK] of a longer one
MERGE_MEMORY = "128MiB"  # of DuckDB; what is more goes to the disk
MERGE_THREADS = 2  # each holds memory that cannot go to the disk: 2.3 M words fail with 16
_SCHEMA = pa.schema([("word", pa.string()), ("count", pa.int64())])


@dataclass(frozen=True)
class WordCounts:
    """The words of a corpus, most frequent first, ties by code point.

    Args:
        words: as `BertTokenizer` splits them.
        counts: how often each occurs.
        characters: (`NUM_CODES`,) int64, how often each code point occurs in all words.
        num_texts: that were read.
        num_distinct: of all words, with those too rare or too long to be among `words`.
    """

    words: pa.StringArray
    counts: pa.Int64Array
    characters: np.ndarray
    num_texts: int
    num_distinct: int


def count_words(texts: Iterable[str], *, max_words: int) -> WordCounts:
    """Count words; what does not fit into memory is counted on the disk.

    Args:
        texts: read once; their order does not matter.
        max_words: distinct words that are kept, the most frequent of those with up to `MAX_CHARACTERS`.

    Raises:
        InputError: the disk is full, or `MERGE_MEMORY` is too little.
    """
    num_texts = num_parts = 0
    characters = np.zeros(NUM_CODES, dtype=np.int64)
    counts: Counter[str] = Counter()
    stream = iter(texts)
    progress = tqdm(desc="count words", unit=" comments", unit_scale=True)
    with TemporaryDirectory(prefix="kcelectra-words-") as work_dir, progress:
        while batch := list(islice(stream, TEXTS_AT_A_TIME)):
            num_texts += len(batch)
            progress.update(len(batch))
            counts.update("\n".join(batch).translate(WORD_BREAKS).split())
            if len(counts) > MAX_COUNTED:
                characters += _write(counts, Path(work_dir, f"{num_parts:06d}.parquet"))
                num_parts += 1
        characters += _write(counts, Path(work_dir, f"{num_parts:06d}.parquet"))
        table, num_distinct = _merge(work_dir, max_words)
    words, occurrences = (table[name].combine_chunks() for name in _SCHEMA.names)
    return WordCounts(words, occurrences, characters, num_texts, num_distinct)


class _WordBreaks(dict[int, int | str]):
    """Table for `str.translate` that sets spaces where `BertTokenizer` splits words and takes away what it deletes.

    Asks the library once for each character that occurs, as its normaliser and its splitting look at one at a time.
    """

    normalizer = BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=False)
    pre_tokenizer = BertPreTokenizer()

    def __missing__(self, code: int) -> int | str:
        character = chr(code)
        if "\ud800" <= character <= "\udfff":  # half of a character, which the library does not take
            words = ["aa"]
        else:
            normal = self.normalizer.normalize_str(f"a{character}a")
            words = [word for word, _ in self.pre_tokenizer.pre_tokenize_str(normal)]
        self[code] = code if words == [f"a{character}a"] else " ".join(words)[1:-1]
        return self[code]


#: `text.translate(WORD_BREAKS).split()` are the words of a text.
WORD_BREAKS = _WordBreaks()


def iterate_codes(words: pa.StringArray, counts: pa.Int64Array) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield words as code points, some at a time.

    Returns:
        Of some words at a time, int64: the code points, each word with a line break after it; the number of the word
        that each code point is of; and how often each word occurs.
    """
    for start in range(0, len(words), WORDS_AT_A_TIME):
        text = "\n".join(words.slice(start, WORDS_AT_A_TIME).to_pylist()) + "\n"
        codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4").astype(np.int64)
        is_end = codes == ord("\n")
        yield codes, np.cumsum(is_end) - is_end, counts.slice(start, WORDS_AT_A_TIME).to_numpy()


@contextmanager
def _on_disk(work_dir: str | Path) -> Iterator[None]:
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise InputError(f"cannot count words within {MERGE_MEMORY}: {error}; give a lower --sample") from error
    except (OSError, duckdb.Error) as error:
        raise InputError(f"cannot count words in {work_dir}: {error}; make room, or set TMPDIR") from error


def _write(counts: Counter[str], path: Path) -> np.ndarray:
    """Move counts to the disk, and return those of the characters."""
    columns = [pa.array(counts.keys(), pa.string()), pa.array(counts.values(), pa.int64())]
    counts.clear()
    with _on_disk(path.parent):
        pq.write_table(pa.Table.from_arrays(columns, schema=_SCHEMA), path)
    characters = np.zeros(NUM_CODES, dtype=np.int64)
    for codes, word_of, occurrences in iterate_codes(*columns):
        characters += np.bincount(codes, occurrences[word_of], NUM_CODES).astype(np.int64)
    characters[ord("\n")] = 0
    return characters


def _merge(work_dir: str, max_words: int) -> tuple[pa.Table, int]:
    """Return the most frequent words, and how many there are."""
    settings: dict[str, Any] = {
        "memory_limit": MERGE_MEMORY,
        "threads": MERGE_THREADS,
        "temp_directory": str(Path(work_dir, "spill")),
        "preserve_insertion_order": False,
    }
    parts = str(Path(work_dir, "*.parquet")).replace("'", "''")
    with _on_disk(work_dir), duckdb.connect(config=settings) as database:
        database.execute(
            f"CREATE TABLE words AS SELECT word, sum(count)::BIGINT AS count FROM '{parts}' GROUP BY word"
        )
        num_distinct = database.execute("SELECT count(*) FROM words").fetchall()[0][0]
        kept = database.sql(
            f"SELECT word, count FROM words WHERE length(word) <= {MAX_CHARACTERS} "
            f"ORDER BY count DESC, word LIMIT {max_words}"
        )
        return kept.to_arrow_table().cast(_SCHEMA), num_distinct
