"""Cut words at their morphemes before a vocabulary is trained, so that no piece joins a noun and its particle.

The tokenizer that comes out is a plain `BertTokenizer`: the analyser is needed here only.
"""

import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from kcelectra.corpus.cleaning import EMOJI
from kcelectra.corpus.workers import num_cores, run_tasks
from kcelectra.errors import InputError

#: Where words are cut: before particles and the copula, or at every morpheme.
MORPHEMES = ("particles", "all")
CUT = "\x1f"  # BERT's normaliser deletes it, so no word holds one
WORDS_AT_A_TIME = 20_000
_HANGUL = re.compile("[가-힣]")
_RUN = re.compile(f"[ㄱ-ㅣ]+|(?:{EMOJI})+")


def cut_words(words: pa.StringArray, morphemes: str, *, num_workers: int | None = None) -> pa.StringArray:
    """Return words with `CUT` between their parts, analysed over processes, with a progress bar.

    Args:
        words: as `BertTokenizer` splits them; each is analysed by itself, so that equal words have equal parts.
        morphemes: one of `MORPHEMES`.
        num_workers: processes; one a core if None.

    Raises:
        InputError: the analyser is not installed, or an argument is out of range.

    Source: the part-of-speech tags are the Sejong corpus's, as kiwipiepy gives them.
    """
    if morphemes not in MORPHEMES:
        raise InputError(f"--morphemes is {morphemes!r}; use one of {', '.join(MORPHEMES)}")
    require_workers(num_workers)
    require_analyser()
    parts: dict[int, pa.StringArray] = {}
    with (
        TemporaryDirectory(prefix="kcelectra-morphemes-") as work_dir,
        tqdm(total=len(words), desc="cut words", unit=" words", unit_scale=True) as bar,
    ):
        table = pa.table({"word": words}).replace_schema_metadata({"morphemes": morphemes})
        pq.write_table(table, Path(work_dir, "words.parquet"), row_group_size=WORDS_AT_A_TIME)

        def collect(task: int, cut: list[str]) -> None:
            parts[task] = pa.array(cut, pa.string())
            bar.update(len(cut))

        num_tasks = -(-len(words) // WORDS_AT_A_TIME)
        run_tasks(_cut_part, work_dir, range(num_tasks), num_workers=num_workers or num_cores(), on_done=collect)
    return pa.concat_arrays([parts[task] for task in range(num_tasks)])


def require_analyser() -> None:
    """Check that kiwipiepy can be imported.

    Raises:
        InputError: it cannot.
    """
    if importlib.util.find_spec("kiwipiepy") is None:
        raise InputError("--morphemes needs kiwipiepy: pip install 'kcelectra[morphemes]', or leave out --morphemes")


def require_workers(num_workers: int | None) -> None:
    """Check the number of processes.

    Raises:
        InputError: it is below 1.
    """
    if num_workers is not None and num_workers < 1:
        raise InputError(f"--num_workers is {num_workers}; give 1 or more")


def _cut_part(work_dir: str, task: int) -> list[str]:
    file = pq.ParquetFile(Path(work_dir, "words.parquet"))
    morphemes = file.schema_arrow.metadata[b"morphemes"].decode()
    words = file.read_row_group(task).column("word").to_pylist()
    return list(cut_in_process(words, morphemes))


def cut_in_process(words: list[str], morphemes: str) -> Iterator[str]:
    """Yield words with `CUT` between their parts.

    A run of jamo or emoji is a part of its own. A word that the analyser does not take apart into pieces that make
    the word again stays whole.

    >>> [word.split(CUT) for word in cut_in_process(["영화에서는", "재밌었다ㅋㅋ", "ㅋㅋ"], "particles")]
    [['영화', '에서', '는'], ['재밌었다', 'ㅋㅋ'], ['ㅋㅋ']]
    """
    analysed = iter(_analyser().tokenize([word for word in words if _HANGUL.search(word)]))
    for word in words:
        runs = [match.span() for match in _RUN.finditer(word)]
        cuts = _find_cuts(word, next(analysed), morphemes) if _HANGUL.search(word) else set()
        cuts = {cut for cut in cuts if not any(start < cut < end for start, end in runs)}.union(*runs)
        edges = [0, *sorted(cuts - {0, len(word)}), len(word)]
        yield CUT.join(word[start:end] for start, end in zip(edges, edges[1:], strict=False))


def _find_cuts(word: str, tokens: list[Any], morphemes: str) -> set[int]:
    """Return where morphemes begin; they may share a syllable (했 is 하 and 었), where nothing can be cut."""
    cuts, end = set(), 0
    for token in tokens:
        if token.start > end:
            return set()
        is_wanted = morphemes == "all" or token.tag.startswith("J") or token.tag == "VCP"
        if token.start == end and is_wanted:
            cuts.add(end)
        end = max(end, token.end)
    return cuts if end == len(word) else set()


@cache
def _analyser() -> Any:
    from kiwipiepy import Kiwi  # half a second and 300 MB

    return Kiwi(num_workers=1)
