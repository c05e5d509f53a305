"""Load a tokenizer and see that it is the model's; write one."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import BertTokenizer, PreTrainedTokenizerBase

from kcelectra.errors import InputError
from kcelectra.tokenization.vocabulary import (
    PUBLISHED,
    PublishedVocabulary,
    hash_vocabulary,
    identify_vocabulary,
    read_vocabulary,
    require_special_tokens,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

MAX_LENGTH = 512
MAX_PADDING = 127  # rows that an embedding table may have beyond the vocabulary, to be a multiple of 128


def load_tokenizer(
    source: str | Path,
    *,
    revision: str | None = None,
    config: "PreTrainedConfig | None" = None,
    for_pretraining: bool = True,
) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a `vocab.txt`, a directory or the Hub.

    Args:
        source: path of a WordPiece `vocab.txt`, one token a line; or whatever `AutoTokenizer.from_pretrained` takes.
        revision: of a tokenizer on the Hub.
        config: of the model that it is for; see `check_pairing`.
        for_pretraining: without a `config`, require the special tokens at the ids of the published WordPiece
            vocabularies.

    Raises:
        InputError: there is nothing there, it is not the model's, or it is no vocabulary for pretraining.
    """
    from transformers import AutoTokenizer  # as PreTrainedConfig it imports torch: 200 MB that training can do without

    if str(source).endswith(".txt"):
        tokenizer: PreTrainedTokenizerBase = as_bert_tokenizer(read_vocabulary(source, allow_crlf=True))
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(source), revision=revision)
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot load a tokenizer from {source}: {error}; give a vocab.txt, a directory, or a "
                "Hub id with its --tokenizer_revision"
            ) from error
    if config is not None:
        check_pairing(tokenizer, config)
    elif for_pretraining:
        require_special_tokens(tokens_by_id(tokenizer), source)
    return tokenizer


def check_pairing(tokenizer: PreTrainedTokenizerBase, config: "PreTrainedConfig") -> None:
    """Check that a tokenizer is the one that a model was trained with, as far as the two can tell.

    The published vocabularies have other ids for the same tokens, and a model takes any of them without an error.

    Args:
        tokenizer: any.
        config: of an encoder: `model_type`, `vocab_size` and `pad_token_id` are looked at. Its table may have up to
            `MAX_PADDING` more rows than there are tokens.

    Raises:
        InputError: the sizes differ, or both are of published models and not of the same; with what to load instead.
    """
    size = len(tokenizer)
    theirs, ours = identify_model(config), identify_tokenizer(tokenizer)
    is_wrong = theirs is not None and ours is not None and theirs != ours
    if not is_wrong and size <= config.vocab_size <= size + MAX_PADDING:
        return
    model = f"the model of {theirs.name}" if theirs else "the model"
    has = f"is that of {ours.name}, {size} tokens" if ours else f"has {size} tokens"
    cure = f"load {theirs.cure}" if theirs else "load the tokenizer from where the model is"
    if ours and not theirs:
        cure += f", or a model of {ours.name}: revision {ours.revision} of {ours.repo_id}"
    raise InputError(f"{model} has {config.vocab_size} tokens, and the tokenizer {has}; their ids differ: {cure}")


def identify_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PublishedVocabulary | None:
    """Return which published vocabulary a tokenizer has, or None."""
    return identify_vocabulary(tokens_by_id(tokenizer), pad_token_id=tokenizer.pad_token_id)


def identify_model(config: "PreTrainedConfig") -> PublishedVocabulary | None:
    """Return which published vocabulary a model has by its type, size and padding, or None."""
    facts = (config.model_type, config.vocab_size, config.pad_token_id)
    return next((x for x in PUBLISHED if (x.model_type, x.size, x.pad_token_id) == facts), None)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, output_dir: str | Path) -> None:
    """Write a tokenizer for `AutoTokenizer.from_pretrained`, and its `vocab.txt`, which transformers 5 leaves out."""
    tokenizer.save_pretrained(output_dir)
    text = "".join(f"{token}\n" for token in tokens_by_id(tokenizer))
    Path(output_dir, "vocab.txt").write_text(text, encoding="utf-8")


def tokens_by_id(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return all tokens, in the order of their ids."""
    return [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the sha256 of a tokenizer's vocabulary; see `hash_vocabulary`."""
    return hash_vocabulary(tokens_by_id(tokenizer))


def as_bert_tokenizer(tokens: Sequence[str]) -> BertTokenizer:
    """Return the tokenizer of a vocabulary: cased, no accents stripped, Hanja one by one, at most 512 tokens."""
    # `vocab=` and never `vocab_file=`: transformers 5 ignores the latter and makes a vocabulary of 5 tokens
    return BertTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        do_lower_case=False,
        strip_accents=False,
        tokenize_chinese_chars=True,
        model_max_length=MAX_LENGTH,
    )
