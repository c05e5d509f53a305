"""Train a WordPiece vocabulary on comments, and lay it out as the published ones are."""

import hashlib
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.trainers import BpeTrainer
from transformers import BertTokenizer

from kcelectra.corpus.comments import CommentReader, choose_cleaning, find_revision, read_texts
from kcelectra.errors import InputError
from kcelectra.manifest import MANIFEST, find_damaged_file, read_stage, write_manifest
from kcelectra.tokenization.loading import as_bert_tokenizer, save_tokenizer
from kcelectra.tokenization.morphemes import CUT, MORPHEMES, cut_words, require_analyser, require_workers
from kcelectra.tokenization.vocabulary import (
    SPECIAL_TOKENS,
    append_donor,
    append_unused,
    hash_vocabulary,
    read_vocabulary,
    require_special_tokens,
)
from kcelectra.tokenization.words import MAX_CHARACTERS, NUM_CODES, WORD_BREAKS, WordCounts, count_words, iterate_codes

logger = logging.getLogger(__name__)

#: Added to the code of each character that does not begin its word, so that the trainer sees `##가` as one character.
CONTINUING = 0x80000
CHARACTERS_AT_A_TIME = 200_000
TEXTS_AT_A_TIME = 10_000
MAX_NAMED = 20  # characters outside the alphabet that the manifest names


@dataclass(frozen=True)
class VocabularyArguments:
    """What a vocabulary is, whatever it is trained on."""

    vocab_size: int = field(
        default=30_000, metadata={"help": "Tokens that are trained, special ones and characters with them."}
    )
    limit_alphabet: int = field(default=4_000, metadata={"help": "Characters that are kept; 4000 as published."})
    min_frequency: int = field(default=2, metadata={"help": "Occurrences that a merge needs."})
    morphemes: str | None = field(
        default=None,
        metadata={
            "help": f"Cut words first: {' or '.join(MORPHEMES)} (before particles and the copula, or anywhere)."
        },
    )
    donor_vocab: str | None = field(
        default=None, metadata={"help": "vocab.txt of which what is missing is appended, beyond --vocab_size."}
    )
    num_unused: int = field(default=0, metadata={"help": "[unused0], [unused1], ... appended; 1000 in v2021."})
    max_words: int = field(
        default=500_000, metadata={"help": "Distinct words to train on, the most frequent; they bound the memory."}
    )
    sample: float = field(default=1.0, metadata={"help": "Share of the comments to train on, drawn with --seed."})
    seed: int = field(default=0, metadata={"help": "Of the sample."})

    def __post_init__(self) -> None:
        least = {"vocab_size": len(SPECIAL_TOKENS) + 1, "limit_alphabet": 1, "min_frequency": 1, "max_words": 1}
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise InputError(f"{name} is {getattr(self, name)}; give at least {minimum}")
        if self.num_unused < 0 or self.seed < 0 or not 0 < self.sample <= 1:
            raise InputError("give a --num_unused and a --seed of 0 or more, and a --sample above 0 and up to 1")
        if self.morphemes not in (None, *MORPHEMES):
            raise InputError(f"--morphemes is {self.morphemes!r}; use one of {', '.join(MORPHEMES)}")


def train_tokenizer(
    corpus: str | Path | CommentReader | Iterable[str],
    output_dir: str | Path | None = None,
    *,
    rules: str | None = None,
    min_chars: int | None = None,
    num_workers: int | None = None,
    **options: Any,
) -> BertTokenizer:
    """Train a cased WordPiece vocabulary on comments.

    A word of up to 100 characters, all in the alphabet, is never `[UNK]`: each can begin a word and go on with one.

    Args:
        corpus: what `build_corpus` made; or any source that it takes, or a reader of one, which is cleaned as in
            pretraining; or cleaned comments, read once.
        output_dir: gets `tokenizer.json`, `tokenizer_config.json`, `vocab.txt` and `manifest.json` with every count.
            Nothing is written before all is well, and a directory that holds this tokenizer already is left as it is.
        rules: rule set that cleans the source; v2022 if None, none for a built corpus.
        min_chars: shortest comment of the source that is read; 10 if None, 0 for a built corpus.
        num_workers: processes that cut words at their morphemes; one a core if None.
        **options: the fields of `VocabularyArguments`.

    Returns:
        A plain `BertTokenizer`: no lower-casing, no accent stripping (which would decompose Hangul). The same texts
        give the same vocabulary, whatever their order and the number of processes.

    Raises:
        InputError: there is no text, the alphabet does not fit into `vocab_size`, the donor's file is damaged, or
            `output_dir` holds something else.
    """
    arguments = VocabularyArguments(**options)
    require_workers(num_workers)
    donor, described = _read_donor(arguments.donor_vocab)
    settings: dict[str, Any] = {"corpus": None, **asdict(arguments), **described}
    reader = CommentReader(str(corpus)) if isinstance(corpus, str | Path) else corpus
    if isinstance(reader, CommentReader):
        cleaning = choose_cleaning(reader.dataset, rules, min_chars)
        settings |= {"corpus": reader.dataset, **_describe_reader(reader), **cleaning}
        texts: Iterable[str] = read_texts(reader, **cleaning)
    else:
        texts = reader
    if output_dir is not None and _is_there(Path(output_dir), settings):
        return BertTokenizer.from_pretrained(output_dir)
    if output_dir is not None:
        _make_staging(Path(output_dir)).rmdir()  # what cannot be written is found before hours of training
    if arguments.morphemes:
        require_analyser()
    words = count_words(_sample(texts, arguments.sample, arguments.seed), max_words=arguments.max_words)
    tokens, facts = train_vocabulary(words, arguments, num_workers=num_workers)
    tokens, layout = _lay_out(tokens, donor, arguments.num_unused)
    if output_dir is not None:
        read = {"read": dict(reader.counts)} if isinstance(reader, CommentReader) else {}
        write_tokenizer(tokens, output_dir, settings=settings, **read, **facts, **layout)
    return as_bert_tokenizer(tokens)


def extend_tokenizer(
    base_vocab: str | Path,
    output_dir: str | Path,
    *,
    donor_vocab: str | Path | None = None,
    num_unused: int = 0,
) -> BertTokenizer:
    """Append to a vocabulary, without training: a donor's tokens and `[unusedN]`, as v2021 was built of its 25,000.

    Args:
        base_vocab: path of a `vocab.txt`, whose ids stay.
        output_dir: see `train_tokenizer`.
        donor_vocab: path of a `vocab.txt` of which what is missing is appended, in its order.
        num_unused: `[unused0]`, `[unused1]`, ... after that.

    Raises:
        InputError: a file is damaged, the base has its special tokens elsewhere, or `output_dir` holds something else.
    """
    tokens = read_vocabulary(base_vocab)
    require_special_tokens(tokens, base_vocab)
    donor, described = _read_donor(donor_vocab)
    base = {"base_vocab": str(base_vocab), "base_sha256": hash_vocabulary(tokens)}
    settings = {**base, **described, "num_unused": num_unused}
    if not _is_there(Path(output_dir), settings):
        tokens, layout = _lay_out(tokens, donor, num_unused)
        write_tokenizer(tokens, output_dir, settings=settings, **layout)
    return BertTokenizer.from_pretrained(output_dir)


def train_vocabulary(
    words: WordCounts, arguments: VocabularyArguments, *, num_workers: int | None = None
) -> tuple[list[str], dict[str, Any]]:
    """Return the tokens by id, special ones first, then the alphabet, then pieces by rank; and what was counted.

    Source: the merges are those of `tokenizers`' `BpeTrainer`, on which its WordPiece trainer stands too. Differs from
    that: what goes on with a word is mapped to characters of its own, which takes the place of its `##` prefix. So a
    part of a word can begin with `##`, and ids do not depend on the order of a hash table, as they do there.
    """
    if not len(words.words):
        what = f"word of up to {MAX_CHARACTERS} characters" if words.num_distinct else "text"
        raise InputError(
            f"no {what} to train a tokenizer on; check --dataset or --corpus_dir, --text_column and --min_chars"
        )
    alphabet, outside = _choose_alphabet(words, arguments.limit_alphabet)
    continuing = [code for code in alphabet if WORD_BREAKS[code] == code]
    num_fixed = len(SPECIAL_TOKENS) + len(alphabet) + len(continuing)
    if num_fixed > arguments.vocab_size:
        raise InputError(
            f"vocab_size is {arguments.vocab_size}; the special tokens and {len(alphabet)} characters, "
            f"{len(continuing)} of them with and without ##, take {num_fixed}: give a --vocab_size above that, or a "
            "lower --limit_alphabet"
        )
    cut = cut_words(words.words, arguments.morphemes, num_workers=num_workers) if arguments.morphemes else words.words
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = WhitespaceSplit()
    trainer = BpeTrainer(
        vocab_size=arguments.vocab_size,
        min_frequency=arguments.min_frequency,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=[*map(chr, alphabet), *(chr(code + CONTINUING) for code in continuing)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_repeat_words(cut, words.counts, alphabet), trainer)
    by_id = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    tokens = [token if token in SPECIAL_TOKENS else _as_piece(token) for token, _ in by_id]
    if len(tokens) < arguments.vocab_size:
        logger.warning("%d of %d tokens: there are no more merges", len(tokens), arguments.vocab_size)
    facts = {
        "num_texts": words.num_texts,
        "num_words": {"distinct": words.num_distinct, "trained_on": len(words.words)},
        "num_alphabet": len(alphabet),
        "outside_alphabet": outside,
    }
    return tokens, facts


def _choose_alphabet(words: WordCounts, limit: int) -> tuple[list[int], dict[str, Any]]:
    """Return the most frequent characters, ties by code point, in code point order; and what is outside."""
    counts = words.characters
    ranked = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    alphabet = ranked[ranked < CONTINUING][:limit]  # beyond are variation selectors and what is not assigned
    outside = ranked[~np.isin(ranked, alphabet)]
    facts = {
        "num_characters": len(outside),
        "num_occurrences": int(counts[outside].sum()),
        "most_frequent": {chr(code): int(counts[code]) for code in outside[:MAX_NAMED]},
    }
    if len(outside):
        named = " ".join(map(chr, outside[:MAX_NAMED]))
        logger.info("%d characters are outside the alphabet, such as %s", len(outside), named)
    return sorted(alphabet.tolist()), facts


def _repeat_words(words: pa.StringArray, counts: pa.Int64Array, alphabet: list[int]) -> Iterator[list[str]]:
    """Yield each word as often as it occurs, for a trainer that counts; words with other characters are left out."""
    is_known = np.zeros(NUM_CODES, dtype=bool)
    is_known[[*alphabet, ord("\n"), ord(CUT)]] = True
    for codes, word_of, weights in iterate_codes(words, counts):
        is_kept = np.ones(len(weights), dtype=bool)
        is_kept[word_of[~is_known[codes]]] = False
        codes = codes[is_kept[word_of]]
        begins = np.concatenate([[True], codes[:-1] == ord("\n")])
        is_mark = (codes == ord("\n")) | (codes == ord(CUT))
        codes = np.where(codes == ord(CUT), ord(" "), codes + np.where(begins | is_mark, 0, CONTINUING))
        lines = codes.astype("<u4").tobytes().decode("utf-32-le").split("\n")[:-1]
        chunk, size = [], 0
        for line, count in zip(lines, weights[is_kept].tolist(), strict=True):
            most = max(1, CHARACTERS_AT_A_TIME // (len(line) + 1))
            for repeats in [most] * (count // most) + [count % most]:
                chunk.append((line + " ") * repeats)
                size += len(chunk[-1])
                if size > CHARACTERS_AT_A_TIME:
                    yield ["".join(chunk)]
                    chunk, size = [], 0
        yield ["".join(chunk)]


def _as_piece(token: str) -> str:
    text = "".join(chr(ord(x) - CONTINUING) if ord(x) >= CONTINUING else x for x in token)
    return f"##{text}" if ord(token[0]) >= CONTINUING else text


def _describe_reader(reader: CommentReader) -> dict[str, Any]:
    """Return what tells one state of a source from another, as far as it can be told without reading it."""
    # of these two, earlier versions did not write the column, and theirs are to be known again
    column = {} if reader.text_column == "text" else {"text_column": reader.text_column}
    if read_stage(reader.dataset, "corpus") is not None:
        digest = hashlib.sha256(Path(reader.dataset, MANIFEST).read_bytes()).hexdigest()
        return {"corpus_sha256": digest, **column}
    if not reader.files:
        return {"split": reader.split, "revision": find_revision(reader.dataset, reader.revision), **column}
    status = [os.stat(file) for file in reader.files]
    files = [{"size": one.st_size, "modified_ns": one.st_mtime_ns} for one in status]
    return {"text_column": reader.text_column, "files": files}


def _read_donor(path: str | Path | None) -> tuple[list[str], dict[str, Any]]:
    """Return the tokens of a donor, none if there is none, and the settings that tell which it was."""
    if path is None:
        return [], {"donor_vocab": None}
    tokens = read_vocabulary(path)
    return tokens, {"donor_vocab": str(path), "donor_sha256": hash_vocabulary(tokens)}


def _sample(texts: Iterable[str], share: float, seed: int) -> Iterator[str]:
    stream = iter(texts)
    for number in range(2**63):
        batch = list(islice(stream, TEXTS_AT_A_TIME))
        if not batch:
            return
        if share == 1:
            yield from batch
        else:
            drawn = np.random.default_rng([seed, number]).random(len(batch)) < share
            yield from (text for text, is_drawn in zip(batch, drawn, strict=True) if is_drawn)


def _lay_out(tokens: list[str], donor: list[str], num_unused: int) -> tuple[list[str], dict[str, Any]]:
    num_own = len(tokens)
    tokens, counts = append_donor(tokens, donor)
    if donor:
        logger.info("donor: %(num_tokens)d tokens, %(num_overlap)d there already, %(num_appended)d appended", counts)
    return append_unused(tokens, num_unused), {"num_own": num_own, **({"donor": counts} if donor else {})}


def write_tokenizer(tokens: list[str], output_dir: str | Path, **facts: Any) -> None:
    """Write a tokenizer with its manifest so that the directory is there whole or not at all.

    Raises:
        InputError: the disk is full, or there may be nothing written.
    """
    output_dir = Path(output_dir).resolve()  # what a link leads to
    if facts["settings"].get("morphemes"):
        facts["analyser"] = {"kiwipiepy": version("kiwipiepy")}
    staging = _make_staging(output_dir)
    try:
        save_tokenizer(as_bert_tokenizer(tokens), staging)
        write_manifest(staging, stage="tokenizer", num_tokens=len(tokens), sha256=hash_vocabulary(tokens), **facts)
        if output_dir.is_dir():
            output_dir.rmdir()  # `_is_there` has seen that it is empty
        staging.rename(output_dir)
    except OSError as error:
        raise InputError(f"cannot write {output_dir}: {error}; make room, or give another --output_dir") from error


def _make_staging(output_dir: Path) -> Path:
    """Return a new directory beside that of a tokenizer, which takes its name once it is whole."""
    output_dir = output_dir.resolve()
    staging = output_dir.with_name(f".{output_dir.name}.tmp")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"cannot write {output_dir}: {error}; give another --output_dir") from error
    return staging


def _is_there(output_dir: Path, settings: dict[str, Any]) -> bool:
    """Say whether a directory holds the tokenizer of these settings."""
    if output_dir.resolve() == Path.cwd():
        raise InputError("the tokenizer gets a directory of its own; give an --output_dir below this one")
    if not output_dir.exists() or (output_dir.is_dir() and not any(output_dir.iterdir())):
        return False
    manifest = read_stage(output_dir, "tokenizer")
    if manifest is None:
        raise InputError(f"{output_dir} is there and holds no tokenizer of this recipe; give another --output_dir")
    earlier = manifest["settings"]
    changed = [
        f"{key}: {earlier.get(key)} there, {settings.get(key)} now"
        for key in {**earlier, **settings}
        if earlier.get(key) != settings.get(key)
    ]
    if changed or settings.get("corpus", "") is None:
        what = "; ".join(changed) or "of texts that are not known"
        raise InputError(
            f"{output_dir} holds another tokenizer ({what}); give another --output_dir, or delete this one"
        )
    damage = find_damaged_file(output_dir, manifest)
    if damage is not None:
        raise InputError(f"{damage}; delete {output_dir}, and the same command makes it again")
    return True
