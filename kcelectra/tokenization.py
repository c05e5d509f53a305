"""Train a WordPiece vocabulary, load a published one."""

import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import BertWordPieceTokenizer
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase

from kcelectra.errors import InputError

#: At ids 0 to 4, as in every published KcBERT and KcELECTRA vocabulary.
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_LENGTH = 512


def train_tokenizer(
    texts: Iterable[str], *, vocab_size: int = 30000, limit_alphabet: int = 4000, min_frequency: int = 2
) -> BertTokenizer:
    """Train a cased WordPiece vocabulary on comments.

    Args:
        texts: cleaned comments, read once.
        vocab_size: at most this many tokens, the five special ones included.
        limit_alphabet: number of single characters kept; 4000 in KcBERT, v2021 and v2022.
        min_frequency: a merge needs as many occurrences.

    Returns:
        A plain `BertTokenizer`: no lower-casing, no accent stripping (which would decompose Hangul). The same texts
        give the same vocabulary.

    Raises:
        InputError: there is no text, or `vocab_size` leaves no room beside the special tokens.
    """
    if vocab_size <= len(SPECIAL_TOKENS):
        raise InputError(f"vocab_size is {vocab_size}; give more than the {len(SPECIAL_TOKENS)} special tokens")
    trainer = BertWordPieceTokenizer(lowercase=False, strip_accents=False, handle_chinese_chars=True)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as spool:  # two passes over texts that may come only once
        first, continuing = Counter[str](), Counter[str]()
        for text in texts:
            line = trainer.normalizer.normalize_str(text).replace("\n", " ")
            spool.write(f"{line}\n")
            for word, _ in trainer.pre_tokenizer.pre_tokenize_str(line):
                first[word[0]] += 1
                continuing.update(word[1:])
        alphabet = _choose_alphabet(first, continuing, limit=limit_alphabet, room=vocab_size - len(SPECIAL_TOKENS))
        spool.seek(0)
        trainer.train_from_iterator(
            spool,
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            special_tokens=[*SPECIAL_TOKENS, *alphabet, *(f"##{x}" for x in alphabet if x in continuing)],
            show_progress=False,
        )
    vocabulary = trainer.get_vocab()
    if len(vocabulary) == len(SPECIAL_TOKENS):
        raise InputError("no text to train a tokenizer on; check --dataset, --text_column and --min_chars")
    return _bert_tokenizer(vocabulary)


def load_tokenizer(source: str | Path, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a `vocab.txt`, a directory or the Hub.

    Args:
        source: path of a WordPiece `vocab.txt`, one token a line; or whatever `AutoTokenizer.from_pretrained` takes.
        revision: of a tokenizer on the Hub.

    Returns:
        A tokenizer whose special tokens are known to have the ids of the published vocabularies.

    Raises:
        InputError: there is nothing there, or it is not a WordPiece vocabulary with the five special tokens at 0 to 4.
    """
    if str(source).endswith(".txt"):
        tokenizer: PreTrainedTokenizerBase = _bert_tokenizer(_read_vocabulary(Path(source)))
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(source), revision=revision)
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot load a tokenizer from {source}: {error}; give a vocab.txt, a directory, or a "
                "Hub id with its --tokenizer_revision"
            ) from error
    check_special_tokens(tokenizer, source)
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, output_dir: str | Path) -> None:
    """Write a tokenizer for `AutoTokenizer.from_pretrained`, and its `vocab.txt`, which transformers 5 leaves out."""
    tokenizer.save_pretrained(output_dir)
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    Path(output_dir, "vocab.txt").write_text("".join(f"{token}\n" for token, _ in tokens), encoding="utf-8")


def _choose_alphabet(first: Counter[str], continuing: Counter[str], *, limit: int, room: int) -> list[str]:
    """Choose the most frequent characters, ties by code point, as many as fit into the vocabulary with their pieces.

    The library's own choice, and its order of `##` pieces, differ from run to run, and so would every merge that ties
    (measured with tokenizers 0.23): hence both are given to it, as special tokens, in a fixed order.
    """
    characters = first + continuing
    alphabet = []
    for character in sorted(characters, key=lambda character: (-characters[character], character))[:limit]:
        room -= 2 if character in continuing else 1
        if room < 0:
            break
        alphabet.append(character)
    return sorted(alphabet)


def check_special_tokens(tokenizer: PreTrainedTokenizerBase, source: str | Path) -> None:
    """Check that the special tokens stand at ids 0 to 4.

    Raises:
        InputError: they do not; pretraining derives documents and padding from these ids.
    """
    ids = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    if ids != list(range(len(SPECIAL_TOKENS))):
        raise InputError(
            f"{source}: {' '.join(SPECIAL_TOKENS)} have the ids {ids}, not 0 to 4; "
            "give a WordPiece vocabulary such as those of KcBERT, KcELECTRA v2021 or v2022"
        )


def _read_vocabulary(path: Path) -> dict[str, int]:
    try:
        tokens = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the vocabulary {path}: {error}") from error
    if tokens[-1] == "":
        tokens.pop()
    vocabulary = {token.rstrip("\r"): index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise InputError(f"{path}: {len(tokens) - len(vocabulary)} of {len(tokens)} tokens occur twice")
    return vocabulary


def _bert_tokenizer(vocabulary: dict[str, int]) -> BertTokenizer:
    # `vocab=` and never `vocab_file=`: transformers 5 ignores the latter and makes a vocabulary of 5 tokens
    return BertTokenizer(
        vocab=vocabulary,
        do_lower_case=False,
        strip_accents=False,
        tokenize_chinese_chars=True,
        model_max_length=MAX_LENGTH,
    )
